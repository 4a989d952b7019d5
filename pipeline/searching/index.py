"""A published version off the store, checked before it is read, and searched: scores and row ids.

In: a store, a table, perhaps a version. Out: an `OpenIndex`. FAISS accepts most damaged files without a word, so every
file's SHA-256 is compared with the card's first, and width and count after.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import IncompleteError, InputError
from pipeline.indexing.index import NO_ID, Index
from pipeline.indexing.publish import (
    INDEX,
    ROW_IDS,
    UNITS,
    VECTORS,
    Card,
    index_folder,
    read_card,
    read_current,
)
from pipeline.store import Store
from pipeline.table import Receipt, parse_receipt


@dataclass(frozen=True)
class OpenIndex:
    """A loaded version: its card, the index, and what its ids mean."""

    card: Card
    index: Index
    row_ids: pa.ChunkedArray  # by vector id
    unit_bases: NDArray[np.int64]  # first vector id of each unit, ascending
    unit_receipts: pa.ChunkedArray  # as JSON, as they were when the index was built
    scratch: tempfile.TemporaryDirectory[str]  # where copies of a remote store's files lie; gone with the index

    def search(
        self, xq: NDArray[np.float32], k: int, nprobe: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k best rows of each query (n, d): scores and vector ids, best first; id -1 where there are fewer."""
        return self.index.search(xq, min(k, self.card.ntotal), nprobe)

    def number_of(self, row_id: str) -> int | None:
        """Find the vector id of a row; None if the index does not have it."""
        number = pc.index(self.row_ids, pa.scalar(row_id, self.row_ids.type)).as_py()
        return None if number == NO_ID else int(number)

    def vector(self, number: int) -> NDArray[np.float32]:
        """Give the vector (d,) of an id."""
        return self.index.vector(number)

    def place_of(self, number: int) -> tuple[Receipt, int]:
        """Give the receipt of a vector's unit, and the vector's rank in the unit."""
        position = int(np.searchsorted(self.unit_bases, number, side="right")) - 1
        receipt = parse_receipt(f"unit {position}", self.unit_receipts[position].as_py().encode())
        return receipt, number - int(self.unit_bases[position])


def open_index(store: Store, table: str, version: str | None = None) -> OpenIndex:
    """Load a version, the published one unless another is named.

    Raises:
        InputError: nothing is published, or there is no such version.
        IncompleteError: a file is missing or damaged.
    """
    version = version or read_current(store, table)
    if version is None:
        raise InputError(f"table {table}: no index is published; run python -m jobs.build_index")
    card = read_card(store, table, version)
    scratch = tempfile.TemporaryDirectory(prefix="rayclip-index-")
    files = {
        name: store.get_checked(f"{index_folder(table)}/{version}/{name}", digest, Path(scratch.name))
        for name, digest in card.sha256.items()
    }
    index = faiss.read_index(str(files[INDEX]))
    exact = np.load(files[VECTORS], mmap_mode="r") if VECTORS in files else None
    row_ids = pq.read_table(files[ROW_IDS])[schema.ROW_ID]
    units = pq.read_table(files[UNITS])
    if index.d != card.d or not index.ntotal == card.ntotal == len(row_ids):
        raise IncompleteError(
            f"index {table}/{version}: d {index.d}, ntotal {index.ntotal} and {len(row_ids)} ids; the card says "
            f"d {card.d}, ntotal {card.ntotal}"
        )
    return OpenIndex(
        card=card,
        index=Index(index, exact, card.nprobe, card.rerank),
        row_ids=row_ids,
        unit_bases=units["base"].to_numpy(),
        unit_receipts=units["receipt"],
        scratch=scratch,
    )
