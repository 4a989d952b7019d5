"""Partials in, one index out, and proof that nothing was lost, doubled or mixed on the way.

FAISS merges lists of different trainings, and lists whose ids collide, without a word. So digests are compared before,
and count, ids and self-hits from every partial after.
"""

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import IncompleteError
from pipeline.indexing.index import Index
from pipeline.indexing.partial import IDS, LISTS, PROBES, RECEIPT, VECTORS, Partial, inner_ivf
from pipeline.store import Store


def merge(store: Store, partials: list[Partial], trained: bytes, digest: str, scratch: Path) -> faiss.Index:
    """Merge partials into the empty trained index, in the order of their ids.

    Raises:
        IncompleteError: a partial was filled under another training, or a file of it is damaged.
    """
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    ivf = inner_ivf(index)
    for partial in _ordered(partials):
        if partial.training != digest:
            raise IncompleteError(f"{partial.folder}: filled under training {partial.training[:12]}, not {digest[:12]}")
        if ivf is None:
            index.add(_load(store, partial, scratch))
            continue
        lists = faiss.read_InvertedLists(faiss.FileIOReader(str(_file(store, partial, LISTS, scratch))))
        ivf.invlists.merge_from(lists, 0)  # ids were set when they were added
        ivf.ntotal += partial.rows
        index.ntotal = ivf.ntotal
    return index


def merge_vectors(store: Store, partials: list[Partial], d: int, scratch: Path, target: Path) -> NDArray[np.float16]:
    """Lay the partials' vectors one behind the other in a file, memory-mapped: (n, d) float16, by id."""
    rows = sum(partial.rows for partial in partials)
    merged = np.lib.format.open_memmap(target, "w+", np.float16, (rows, d))
    for partial in _ordered(partials):
        merged[partial.base : partial.base + partial.rows] = _load(store, partial, scratch)
    merged.flush()
    return merged


def merge_ids(store: Store, partials: list[Partial], scratch: Path, target: Path) -> None:
    """Write the row ids of all partials to one Parquet file, in the order of vector ids."""
    with pq.ParquetWriter(target, pa.schema([pa.field(schema.ROW_ID, pa.string())])) as writer:
        for partial in _ordered(partials):
            writer.write_table(pq.read_table(_file(store, partial, IDS, scratch)))


def verify(store: Store, index: Index, partials: list[Partial], trained: bytes, scratch: Path) -> None:
    """Check count, ids, and that rows of every partial find themselves.

    Raises:
        IncompleteError: the merged index is not the sum of its partials.
    """
    rows = sum(partial.rows for partial in partials)
    if index.faiss.ntotal != rows:
        raise IncompleteError(f"merged index: ntotal {index.faiss.ntotal}, wanted {rows}")
    ivf = inner_ivf(index.faiss)
    if ivf is not None:
        seen = np.zeros(rows, np.uint8)
        for ids in _listed_ids(ivf):
            if len(ids) and (ids.min() < 0 or ids.max() >= rows):
                raise IncompleteError(f"merged index: ids from {ids.min()} to {ids.max()}, wanted 0 to {rows - 1}")
            np.add.at(seen, ids, 1)
        if not (seen == 1).all():
            raise IncompleteError(f"merged index: {int((seen != 1).sum())} ids are missing or doubled")
    for partial in partials:
        with np.load(_file(store, partial, PROBES, scratch)) as probes:
            _check_self_hits(index, trained, partial.folder, probes["numbers"], probes["vectors"])


def _check_self_hits(
    index: Index, trained: bytes, place: str, numbers: NDArray[np.int64], xq: NDArray[np.float32]
) -> None:
    """Let rows look for themselves in every list; one that does not come up must at least score as it should.

    Ten exact duplicates crowd a row out, and so do coarse codes; neither is the merge's fault. Then the row's score
    under its own id is compared with what it gets in an index that holds nothing else.
    """
    ivf = inner_ivf(index.faiss)
    _, ids = index.search(xq, 10, None if ivf is None else ivf.nlist)
    missed = np.flatnonzero(~(ids == numbers[:, None]).any(axis=1))
    if len(missed) == 0:
        return
    alone = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    if ivf is None:
        expected = (xq[missed] * xq[missed]).sum(axis=1)
    else:
        alone.add_with_ids(xq[missed], numbers[missed])
        expected = _own_scores(Index(alone, None, None, None), ivf.nlist, numbers[missed], xq[missed])
    found = _own_scores(index, ivf.nlist if ivf else None, numbers[missed], xq[missed])
    wrong = numbers[missed][~np.isclose(found, expected, rtol=1e-4)]  # a rotation moves last bits only
    if len(wrong):
        raise IncompleteError(f"merged index: vectors {wrong[:5].tolist()} of {place} do not find themselves")


def _own_scores(
    index: Index, nprobe: int | None, numbers: NDArray[np.int64], xq: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Score each query against the one row of its number, as the index's codes have it."""
    scores = np.empty(len(xq), np.float32)
    for i, number in enumerate(numbers):
        parameters = index.parameters(nprobe, faiss.IDSelectorBatch([int(number)]))
        scores[i] = index.faiss.search(xq[i : i + 1], 1, params=parameters)[0][0, 0]
    return scores


def _listed_ids(ivf: faiss.IndexIVF) -> Iterator[NDArray[np.int64]]:
    for number in range(ivf.nlist):
        size = ivf.invlists.list_size(number)
        yield faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size) if size else np.empty(0, np.int64)


def _load(store: Store, partial: Partial, scratch: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = np.load(_file(store, partial, VECTORS, scratch), mmap_mode="r")
    return vectors


def _file(store: Store, partial: Partial, name: str, scratch: Path) -> Path:
    """Give one of a partial's files, once it is known to be whole; a damaged one costs its receipt."""
    try:
        return store.get_checked(f"{partial.folder}/{name}", partial.sha256[name], scratch)
    except IncompleteError:
        store.remove(f"{partial.folder}/{RECEIPT}")  # so that the next run builds it again
        raise


def _ordered(partials: list[Partial]) -> list[Partial]:
    return sorted(partials, key=lambda partial: partial.base)
