"""Inverted lists on disk: mapped, not read, so that an index may be larger than memory and processes share its pages.

Merging is writing: list by list, what each of the files has of it, in the format of FAISS's own ArrayInvertedLists
(faiss/impl/index_write.cpp). So it holds one list in memory, whatever the size of the index; what is written is read
back by FAISS before it is used, and the tests compare it with FAISS's own merge. A mapped file stays readable when
a vacuum removes its name, and is searched as fast as one in memory (jobs/BENCHMARKS.md).
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.indexing.exact import Selection
from pipeline.indexing.index import inner_ivf

# IndexIVF.parallel_mode: given lists, FAISS searches a batch on one thread unless it is told to divide the queries.
OVER_QUERIES = 3
MAPPED = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY


def read_index(path: Path) -> faiss.Index:
    """Read an index as FAISS wrote it, its inverted lists mapped."""
    index = faiss.read_index(str(path), MAPPED)
    ivf = inner_ivf(index)
    if ivf is not None:
        ivf.parallel_mode = OVER_QUERIES
        _read_no_further(ivf.invlists)
    return index


def read_lists(path: Path) -> faiss.InvertedLists:
    """Map inverted lists that were written alone."""
    lists = faiss.read_InvertedLists(faiss.FileIOReader(str(path)), MAPPED)
    _read_no_further(lists)
    return lists


def write_index(
    trained: bytes, parts: Sequence[faiss.InvertedLists], path: Path, live: Selection | None = None
) -> None:
    """Write an empty trained index with lists put behind each other.

    Args:
        live: which ids stay in the lists; None: all.

    Raises:
        RuntimeError: FAISS writes this kind of index in another way than it did.
    """
    empty = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    writer = faiss.VectorIOWriter()
    faiss.write_InvertedLists(inner_ivf(empty).invlists, writer)
    no_lists = bytes(faiss.vector_to_array(writer.data))
    if not trained.endswith(no_lists):
        raise RuntimeError("FAISS does not write inverted lists at an index's end any more")
    sizes = _sizes(parts, live)
    # ntotal stands in the index's header and in the lists': FAISS writes it there itself.
    ivf = inner_ivf(empty)
    ivf.ntotal = empty.ntotal = int(sizes.sum())
    with path.open("wb") as file:
        file.write(bytes(faiss.serialize_index(empty)).removesuffix(no_lists))
        _write(file, parts, sizes, ivf.code_size, live)


def write_lists(parts: Sequence[faiss.InvertedLists], path: Path) -> None:
    """Write lists alone, put behind each other."""
    with path.open("wb") as file:
        _write(file, parts, _sizes(parts, None), parts[0].code_size, None)


def delta_index(trained: bytes, lists: faiss.InvertedLists) -> faiss.IndexIVF:
    """Make an index of lists that were written alone.

    Its coarse quantiser is a copy that no search asks. Sharing the base's would save it, but SWIG's own() of the one
    that is replaced makes Python count references wrongly, and crash (faiss 1.15.1).
    """
    shell = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    ivf = inner_ivf(shell)
    ivf.replace_invlists(lists, True)
    lists.this.disown()
    ivf.ntotal, ivf.parallel_mode = lists.compute_ntotal(), OVER_QUERIES
    ivf.referenced_objects = [shell]  # which owns it, where a rotation lies before it
    return ivf


def ids_of(lists: faiss.InvertedLists, number: int) -> NDArray[np.int64]:
    """View the ids of one list."""
    size = lists.list_size(number)
    if not size:
        return np.empty(0, np.int64)
    ids: NDArray[np.int64] = faiss.rev_swig_ptr(lists.get_ids(number), size)
    return ids


def lengths(lists: faiss.InvertedLists) -> NDArray[np.int64]:
    """Give the lengths of all lists."""
    return np.array([lists.list_size(number) for number in range(lists.nlist)], np.int64)


def imbalance(sizes: NDArray[np.int64]) -> float:
    """Say how unequal lists are: the time of searching one a row is likely in, over that if all were alike."""
    return float(len(sizes) * (sizes.astype(np.float64) ** 2).sum() / max(1.0, float(sizes.sum()) ** 2))


def _sizes(parts: Sequence[faiss.InvertedLists], live: Selection | None) -> NDArray[np.int64]:
    if live is None:
        return np.asarray(np.sum([lengths(part) for part in parts], axis=0), np.int64)
    counted = (sum(int(live.flags[ids_of(part, n)].sum()) for part in parts) for n in range(parts[0].nlist))
    return np.fromiter(counted, np.int64, parts[0].nlist)


def _write(
    file: BinaryIO,
    parts: Sequence[faiss.InvertedLists],
    sizes: NDArray[np.int64],
    code_size: int,
    live: Selection | None,
) -> None:
    file.write(struct.pack("<4sQQ4sQ", b"ilar", len(sizes), code_size, b"full", len(sizes)))
    file.write(sizes.astype("<u8").tobytes())
    for number in np.flatnonzero(sizes):
        some = [_entries(part, int(number), code_size, live) for part in parts]
        for codes, _ in some:
            file.write(codes.data)
        for _, ids in some:
            file.write(ids.data)


def _entries(
    lists: faiss.InvertedLists, number: int, code_size: int, live: Selection | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """View the codes (n, code_size) and ids (n,) of one list, or copy those that stay."""
    ids = ids_of(lists, number)
    if not len(ids):
        return np.empty((0, code_size), np.uint8), ids
    codes = faiss.rev_swig_ptr(lists.get_codes(number), len(ids) * code_size).reshape(-1, code_size)
    if live is None:
        return codes, ids
    kept = live.flags[ids]
    return codes[kept], ids[kept]


def _read_no_further(lists: faiss.InvertedLists) -> None:
    """Keep FAISS from reading ahead: 32 threads for every query made one of 1 ms take 4 (2026-11-21, 2 cores)."""
    lists = faiss.downcast_InvertedLists(lists)
    if isinstance(lists, faiss.OnDiskInvertedLists):
        lists.prefetch_nthread = 0
