"""The vectors of some units in, one partial out: inverted lists only, or plain vectors where the key is Flat.

A partial carries the digest of the training it was filled under; lists of different trainings would merge without a
word and answer nonsense.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.indexing import vectors
from pipeline.indexing.vectors import Span
from pipeline.store import Store

LISTS, VECTORS, IDS, PROBES = "lists.faiss", "vectors.npy", "ids.parquet", "probes.npz"
PROBE_ROWS = 16


@dataclass(frozen=True)
class Partial:
    """What a filled partial is; its files lie in ``folder``, below the store's root."""

    folder: str
    base: int  # its first vector id
    rows: int
    training: str  # SHA-256 of the trained index


def fill(store_url: str, table_folder: str, spans: list[Span], trained: bytes, digest: str, folder: str) -> Partial:
    """Add the vectors of some units, with their ids, to the empty index; write lists, vectors and row ids.

    Vectors are written in float16 for re-ranking, or in float32 where they are the index itself (Flat). A few, spread
    over the partial, are written as they were added: with them the merged index is asked for this partial's rows.
    """
    faiss.omp_set_num_threads(1)  # one CPU each; partials are what runs in parallel
    store = Store(store_url)
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    ivf = inner_ivf(index)
    rows = vectors.count(spans)
    picked = spans[0].base + np.linspace(0, rows - 1, min(rows, PROBE_ROWS)).astype(np.int64)
    kept, row_ids, probes = [], [], []
    for base, xb, ids in vectors.stream(store, table_folder, spans):
        if ivf is not None:
            index.add_with_ids(np.ascontiguousarray(xb), np.arange(base, base + len(xb)))
        probes.append(xb[picked[(picked >= base) & (picked < base + len(xb))] - base])
        kept.append(xb if ivf is None else xb.astype(np.float16))
        row_ids.extend(ids.chunks)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        np.save(place / VECTORS, np.concatenate(kept))
        pq.write_table(pa.table({schema.ROW_ID: pa.chunked_array(row_ids, pa.string())}), place / IDS)
        np.savez(place / PROBES, numbers=picked, vectors=np.concatenate(probes))
        if ivf is not None:
            faiss.write_InvertedLists(ivf.invlists, faiss.FileIOWriter(str(place / LISTS)))
        for file in place.iterdir():
            store.replace(f"{folder}/{file.name}", file.read_bytes())
    return Partial(folder, spans[0].base, rows, digest)


def inner_ivf(index: faiss.Index) -> faiss.IndexIVF | None:
    """Find the inverted file inside an index, behind a rotation if there is one; None for Flat."""
    return faiss.try_extract_index_ivf(index)
