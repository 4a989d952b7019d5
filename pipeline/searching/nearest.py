"""What is asked of a table, and the rows nearest to it: where every search begins.

In: queries as vectors, texts, pictures or rows, and conditions on what may be found. Out: for each query an Arrow table
of rows, best first, those of equal similarity by their ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import InputError
from pipeline.indexing.exact import NO_ID, Selection
from pipeline.indexing.index import MOST_FOUND
from pipeline.searching.encoder import check_comparable
from pipeline.searching.opened import OpenTable

Kind = Literal["query", "text", "image", "row_id"]


@dataclass(frozen=True)
class Nearest:
    """The k rows nearest to each query, of those that meet all conditions; nothing is opened before `run`.

    Attributes:
        queries: vectors (n, d); or texts, pictures, row ids, n of them.
        is_batch: whether they were given as a list; then every row says of which query it is.
        least: similarity that a row must have.
    """

    table: Callable[[], OpenTable]
    kind: Kind
    queries: Sequence[object] | NDArray[np.float32]
    is_batch: bool
    k: int
    conditions: tuple[str, ...] = ()
    least: float | None = None
    exact: bool = False
    nprobe: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.k <= MOST_FOUND:
            raise InputError(f"k: wanted 0 to {MOST_FOUND}, got {self.k}")

    def run(self, named: set[str], others: bool) -> list[pa.Table]:
        """Find them: a table for each query.

        Args:
            named, others: the columns to bring, as `OpenTable.rows` takes them.

        Raises:
            InputError: nothing is published, a query cannot be encoded or is of another space, or a condition does not
                fit the columns.
        """
        table = self.table()
        xq, own = self.vectors(table), self._own(table)
        if not len(xq) or self.k == 0:
            return [table.rows(np.empty(0, np.int64), np.empty(0, np.float32), named, others=others)] * len(xq)
        # A row that is asked for is its own best hit: it is left out, and one more is looked for.
        k = min(self.k + (self.kind == "row_id"), MOST_FOUND)
        scores, numbers = table.index.search(xq, k, nprobe=self.nprobe, within=self.within(table), exact=self.exact)
        found = (numbers != NO_ID) & (numbers != own[:, None])
        if self.least is not None:
            found &= scores >= self.least
        found &= np.cumsum(found, axis=1) <= self.k
        rows = table.rows(numbers[found], scores[found], named, others=others)
        ends = np.cumsum(found.sum(axis=1))
        return [_ordered(rows.slice(start, end - start)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def within(self, table: OpenTable) -> Selection | None:
        """Find the rows that meet all conditions; None where there is none."""
        selection: Selection | None = None
        for condition in self.conditions:
            selection = table.where(condition) & selection
        return selection

    def said(self) -> str:
        """Say what `run` will do."""
        table = self.table()
        card = table.index.card
        if self.exact or card.nprobe is None:
            how = f"compared with all {card.ntotal} rows"
        else:
            lists = self.nprobe or table.index.index.lists_for(self.k or 1)
            how = f"by {card.factory}, {lists} of {table.index.index.nlist} lists, of {card.ntotal} rows"
        conditions = "".join(f", where {condition}" for condition in self.conditions)
        least = "" if self.least is None else f", similarity at least {self.least:g}"
        return (
            f"the {self.k} rows of {table.name} (index {card.version}) nearest to each of {len(self.queries)} queries "
            f"by {self.kind}, {how}{conditions}{least}"
        )

    def vectors(self, table: OpenTable) -> NDArray[np.float32]:
        """Give the queries' vectors (n, d) of norm 1.

        Raises:
            InputError: one cannot be encoded, or is of another space.
        """
        if self.kind == "text":
            return table.encoder.texts([str(text) for text in self.queries])
        if self.kind == "image":
            return table.encoder.images(list(self.queries))  # type: ignore[arg-type]  # it checks them
        if self.kind == "row_id":
            rows = [table.index.vector(int(number)) for number in self._own(table)]
            return np.stack(rows) if rows else np.empty((0, table.record.d), np.float32)
        vectors = np.asanyarray(self.queries, np.float32)  # of a class of ours they know their space
        check_comparable(vectors, table.record, table.name)
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        if not (np.isfinite(norms).all() and (norms > 0).all()):
            raise InputError("query: a vector is zero or not finite")
        return np.asarray(vectors / norms, np.float32)

    def _own(self, table: OpenTable) -> NDArray[np.int64]:
        """Give the vector ids of the queries that are rows."""
        if self.kind != "row_id":
            return np.full(len(self.queries), NO_ID, np.int64)
        return np.array([table.number_of(str(row_id)) for row_id in self.queries], np.int64)


def _ordered(rows: pa.Table) -> pa.Table:
    """Order rows by similarity, the largest first, then by id."""
    return rows.sort_by([(schema.SIMILARITY, "descending"), (schema.ROW_ID, "ascending")])
