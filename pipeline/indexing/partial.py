"""The vectors of some units in, one partial out: inverted lists only, beside the vectors themselves.

A partial carries the digest of the training it was filled under; lists of different trainings would merge without a
word and answer nonsense. Its receipt is written last: a partial that has one is not built again, and a file that does
not match it is never read. Its vectors and row ids become the version's as they are; its lists are merged.
"""

from dataclasses import asdict, dataclass

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.indexing import vectors
from pipeline.indexing.index import inner_ivf, own_lists, transformed
from pipeline.indexing.publish import digests
from pipeline.indexing.vectors import Span
from pipeline.machine import peak_bytes
from pipeline.store import Store

LISTS, VECTORS, IDS, PROBES, RECEIPT = "lists.faiss", "vectors.npy", "ids.parquet", "probes.npz", "receipt.json"
PROBE_ROWS = 16


@dataclass(frozen=True)
class Partial:
    """What a filled partial is: its receipt. Its files lie in ``folder``, below the store's root."""

    folder: str
    base: int  # its first vector id
    rows: int
    training: str  # SHA-256 of the trained index
    nearness: float  # mean score of its vectors against the centroids of their lists; 0 without lists
    peak_bytes: int  # of the process that filled it
    bytes: dict[str, int]  # by file
    sha256: dict[str, str]


def read_partial(store: Store, folder: str, spans: list[Span], digest: str) -> Partial | None:
    """Read the receipt of a partial; None if it is not there, damaged, or of other rows or another training."""
    try:
        partial = Partial(**store.read_json(f"{folder}/{RECEIPT}"))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    wanted = (folder, spans[0].base, vectors.count(spans), digest)
    return partial if (partial.folder, partial.base, partial.rows, partial.training) == wanted else None


def fill(
    store_url: str,
    table_folder: str,
    spans: list[Span],
    trained: bytes,
    digest: str,
    d: int,
    folder: str,
    threads: int = 1,
) -> Partial:
    """Add the vectors of some units, with their ids, to the empty index; write lists, vectors and row ids.

    Vectors are written in float16 for re-ranking, or in float32 where they are the index itself (Flat). A few, spread
    over the partial, are written as they were added: with them the merged index is asked for this partial's rows.
    Holds the lists in memory, and one file's vectors.
    """
    faiss.omp_set_num_threads(threads)  # one CPU each, where partials are what runs in parallel
    store = Store(store_url)
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    ivf = inner_ivf(index)
    first, rows, nearness = spans[0].base, vectors.count(spans), 0.0
    picked = first + np.linspace(0, rows - 1, min(rows, PROBE_ROWS)).astype(np.int64)
    for path in store.files(folder):  # of an attempt that died
        store.remove(f"{folder}/{path}")
    with store.scratch(folder) as place:
        probes = []
        kept = np.lib.format.open_memmap(place / VECTORS, "w+", np.float32 if ivf is None else np.float16, (rows, d))
        with pq.ParquetWriter(place / IDS, pa.schema([pa.field(schema.ROW_ID, pa.string())])) as row_ids:
            for base, xb, ids in vectors.stream(store, table_folder, spans):
                if ivf is not None:
                    nearness += add(index, xb, np.arange(base, base + len(xb)))
                probes.append(xb[picked[(picked >= base) & (picked < base + len(xb))] - base])
                kept[base - first : base - first + len(xb)] = xb
                row_ids.write_table(pa.table({schema.ROW_ID: ids.cast(pa.string())}))
        kept.flush()
        np.savez(place / PROBES, numbers=picked, vectors=np.concatenate(probes))
        if ivf is not None:
            faiss.write_InvertedLists(ivf.invlists, faiss.FileIOWriter(str(place / LISTS)))
        sizes, sha256 = digests(place)
        for name in sha256:
            store.put_file(f"{folder}/{name}", place / name)
    partial = Partial(folder, first, rows, digest, nearness / rows, peak_bytes(), sizes, sha256)
    store.replace_json(f"{folder}/{RECEIPT}", asdict(partial))
    return partial


def add(index: faiss.Index, xb: NDArray[np.float32], ids: NDArray[np.int64]) -> float:
    """Add vectors (n, d) to the lists whose centroids are truly nearest; give the sum of the scores against these.

    An HNSW coarse quantiser is asked when an index is searched; asked here, it put so many vectors into wrong lists
    that recall@10 did not pass 0.87 at 10^6 x 512, however many lists were searched (jobs/BENCHMARKS.md).
    """
    ivf, x = inner_ivf(index), transformed(index, xb)
    scores, lists = own_lists(ivf, x)
    ivf.add_core(len(x), faiss.swig_ptr(x), faiss.swig_ptr(ids), faiss.swig_ptr(lists))
    index.ntotal = ivf.ntotal
    return float(scores.sum(dtype=np.float64))
