"""One version of one table, open: its index, what its rows are called, their columns and pictures. Never changes.

In: vectors and what is asked of them. Out: scores and vector ids, and hits. A request takes a snapshot once and keeps
it, so that a swap meanwhile changes nothing for it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline import schema
from pipeline.embedding.fetch import FetchSpec
from pipeline.errors import InputError
from pipeline.indexing.exact import NO_ID, Found, Selection
from pipeline.searching.columns import Columns, Row, open_columns
from pipeline.searching.filter import Filter, select
from pipeline.searching.index import OpenIndex, open_index
from pipeline.searching.pictures import Pictures
from pipeline.serving.problems import QueryError
from pipeline.store import Store
from pipeline.table import TableRecord

KEPT_SELECTIONS = 16  # of the filters asked for last: a byte and a bit for every row each
SELF_SCORE = 0.99  # of a row asked for by its own vector


@dataclass(frozen=True)
class Hit:
    """One row found."""

    id: str
    score: float  # inner product of unit vectors: 1 is the same direction
    columns: Row
    number: int  # the vector id


@dataclass(frozen=True)
class Asked:
    """What is asked of an index beside the vector: queries that agree in it are searched together."""

    k: int
    nprobe: int | None = None
    exact: bool = False
    filter: Filter | None = None


@dataclass(frozen=True)
class Snapshot:
    """An open version."""

    index: OpenIndex
    columns: Columns
    pictures: Pictures
    selections: OrderedDict[Filter, Selection] = field(default_factory=OrderedDict)

    @property
    def version(self) -> str:
        """The version's name."""
        return self.index.card.version

    def search(self, xq: NDArray[np.float32], asked: Asked) -> Found:
        """Find the best rows of each query (n, d): D and I (n, k), NO_ID where there are fewer.

        Raises:
            QueryError: the filter does not fit the columns.
        """
        within = None if asked.filter is None else self._selection(asked.filter)
        return self.index.search(xq, asked.k, nprobe=asked.nprobe, within=within, exact=asked.exact)

    def number_of(self, row_id: str) -> int:
        """Find a row's vector id.

        Raises:
            QueryError: this version has no such row.
        """
        live = self.index.index.live
        for number in self.columns.numbers_of(row_id):
            if live is None or live.flags[number]:
                return number
        raise QueryError("unknown_id", f"id {row_id!r}: not in index {self.version}", 404)

    def row_ids(self, numbers: NDArray[np.int64]) -> list[str]:
        """Name rows."""
        return [str(row[schema.ROW_ID]) for row in self.columns.rows(numbers, [schema.ROW_ID])]

    def names(self, wanted: Sequence[str] | None) -> list[str]:
        """Give the kept columns that are wanted; None: all.

        Raises:
            QueryError: there is no such column.
        """
        known = self.columns.types
        for name in wanted or ():
            if name not in known:
                raise QueryError("unknown_column", f"column {name!r}: there are {', '.join(known) or 'none'}")
        return list(known if wanted is None else dict.fromkeys(wanted))

    def hits(
        self, scores: NDArray[np.float32], numbers: NDArray[np.int64], wanted: Sequence[str] | None = None
    ) -> tuple[Hit, ...]:
        """Say what rows were found, best first; places without a row are left out."""
        there = numbers != NO_ID
        names = self.names(wanted)
        rows = self.columns.rows(numbers[there], [schema.ROW_ID, *names])
        return tuple(
            Hit(str(row.pop(schema.ROW_ID)), float(score), row, int(number))
            for row, score, number in zip(rows, scores[there], numbers[there], strict=True)
        )

    def check(self) -> None:
        """Ask for a stored row by its own vector.

        Raises:
            InputError: the index does not find it.
        """
        vector = self.index.vector(self.index.spans[0].base)
        scores, _ = self.search(vector[None, :], Asked(1))
        if not scores[0, 0] >= SELF_SCORE:
            raise InputError(f"index {self.index.card.table}/{self.version}: a row of its own is not found in it")

    def _selection(self, wanted: Filter) -> Selection:
        found = self.selections.get(wanted)
        if found is None:
            try:
                found = select(wanted, self.columns)
            except InputError as error:
                raise QueryError("bad_filter", str(error)) from error
            self.selections[wanted] = found
            while len(self.selections) > KEPT_SELECTIONS:
                self.selections.popitem(last=False)
        return found


def open_snapshot(store: Store, table: str, record: TableRecord, fetch: FetchSpec) -> Snapshot:
    """Load the published version and ask it for a row of its own.

    Raises:
        InputError: nothing is published, or an index of another space, or one that does not find its own rows.
        IncompleteError: a file of it is missing or damaged.
    """
    index = open_index(store, table)
    if record.space != index.card.space:
        raise InputError(
            f"table {table}: its index is of space {index.card.space}, its rows of {record.space}; run "
            "python -m jobs.build_index"
        )
    opened = Snapshot(index, open_columns(store, index, record), Pictures(store, index, record, fetch))
    opened.check()
    return opened
