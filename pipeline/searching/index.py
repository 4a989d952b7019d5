"""A published version off the store, checked before it is read, and searched: scores and row ids.

In: a store, a table, perhaps a version. Out: an `OpenIndex`. FAISS accepts most damaged files without a word, so every
file's SHA-256 is compared with the card's first, and width and count after.
"""

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import IncompleteError, InputError
from pipeline.indexing.exact import Exact, Found, Selection
from pipeline.indexing.index import Index, held_by
from pipeline.indexing.lists import delta_index, read_index, read_lists
from pipeline.indexing.made import live_ids, read_units
from pipeline.indexing.publish import (
    DELTA,
    INDEX,
    ROW_IDS,
    TRAINED,
    UNITS,
    VECTORS,
    Card,
    index_folder,
    read_card,
    read_current,
)
from pipeline.indexing.vectors import Span
from pipeline.store import Store
from pipeline.table import Receipt


@dataclass(frozen=True)
class OpenIndex:
    """A loaded version: its card, the index, and what its ids mean.

    Its files are mapped: a version that is removed from a disk's store goes on answering where it is open.
    """

    card: Card
    index: Index
    row_ids: pa.ChunkedArray  # by vector id
    spans: list[Span]  # the units that it was built from, by their first vector id
    scratch: tempfile.TemporaryDirectory[str]  # where copies of a remote store's files lie; gone with the index

    def search(
        self,
        xq: NDArray[np.float32],
        k: int,
        *,
        nprobe: int | None = None,
        within: Selection | None = None,
        exact: bool = False,
    ) -> Found:
        """Find the k best rows of each query as `Index.search` does; no more columns than the index has rows."""
        return self.index.search(xq, min(k, self.card.ntotal), nprobe=nprobe, within=within, exact=exact)

    def number_of(self, row_id: str) -> int | None:
        """Find the vector id of a row; None if the index does not have it."""
        numbers = np.flatnonzero(pc.equal(self.row_ids, pa.scalar(row_id, self.row_ids.type)))
        live = self.index.live
        found = numbers if live is None else numbers[live.flags[numbers]]
        return int(found[0]) if len(found) else None

    def vector(self, number: int) -> NDArray[np.float32]:
        """Give the vector (d,) of an id."""
        return self.index.vector(number)

    def place_of(self, number: int) -> tuple[Receipt, int]:
        """Give the receipt of a vector's unit, and the vector's rank in the unit."""
        span = self.spans[int(np.searchsorted(self._bases, number, side="right")) - 1]
        return span.receipt, number - span.base

    @cached_property
    def _bases(self) -> NDArray[np.int64]:
        return np.array([span.base for span in self.spans])


def use_threads(threads: int) -> None:
    """Let searches that the calling thread makes use so many threads."""
    faiss.omp_set_num_threads(threads)


def open_index(store: Store, table: str, version: str | None = None) -> OpenIndex:
    """Load a version, the published one unless another is named.

    Where the published version goes while it is being read, the one that took its place is read.

    Raises:
        InputError: nothing is published, or there is no such version.
        IncompleteError: a file is missing or damaged.
    """
    if version is not None:
        return _open(store, table, version)
    while True:
        version = read_current(store, table)
        if version is None:
            raise InputError(f"table {table}: no index is published; run python -m jobs.build_index")
        try:
            return _open(store, table, version)
        except (InputError, IncompleteError):
            if read_current(store, table) == version:
                raise


def _open(store: Store, table: str, version: str) -> OpenIndex:
    card = read_card(store, table, version)
    scratch = tempfile.TemporaryDirectory(prefix="rayclip-index-")

    def files(role: str) -> list[Path]:
        paths = ((f"{index_folder(table)}/{path}", card.sha256[path]) for path in card.files.get(role, []))
        return [store.get_checked(path, digest, Path(scratch.name)) for path, digest in paths]

    (path,) = files(INDEX)
    whole = read_index(path)
    vectors = [np.load(path, mmap_mode="r") for path in files(VECTORS)]
    exact = Exact(vectors) if vectors else held_by(whole)  # Flat is its vectors
    row_ids = pa.chunked_array([pq.read_table(path)[schema.ROW_ID].combine_chunks() for path in files(ROW_IDS)])
    spans = read_units(*files(UNITS))
    listed = [read_lists(path) for path in files(DELTA)]
    deltas = [delta_index(files(TRAINED)[0].read_bytes(), lists) for lists in listed]
    index = Index(whole, exact, card.nprobe, card.margin, card.rerank, deltas, _live(spans, card))
    if whole.d != card.d or not len(row_ids) == len(index.exact) == card.end or index.ntotal != card.ntotal:
        raise IncompleteError(
            f"index {table}/{version}: d {whole.d}, {index.ntotal} rows, {len(index.exact)} vectors and {len(row_ids)} "
            f"ids; the card says d {card.d}, ntotal {card.ntotal} of {card.end}"
        )
    return OpenIndex(card=card, index=index, row_ids=row_ids, spans=spans, scratch=scratch)


def _live(spans: list[Span], card: Card) -> Selection | None:
    """Select the rows that are not gone; None where none is."""
    numbers = live_ids(spans)
    return None if len(numbers) == card.end else Selection.of(numbers, card.end)
