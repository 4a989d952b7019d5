"""A published version with all that a search of it needs: from conditions to vector ids, from these to rows.

In: a store and a table. Out: an `OpenTable`. The notebook's counterpart of the endpoint's snapshot.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import schema
from pipeline.embedding.fetch import FetchSpec
from pipeline.errors import InputError
from pipeline.indexing.exact import Selection
from pipeline.searching.columns import Columns, open_columns
from pipeline.searching.encoder import Encoder
from pipeline.searching.index import OpenIndex, open_index
from pipeline.searching.originals import Originals
from pipeline.searching.pictures import Pictures
from pipeline.searching.sandboxed_sql import alike, met, names_in
from pipeline.store import Store
from pipeline.table import TableRecord


@dataclass(frozen=True)
class OpenTable:
    """One version of one table; it stays what it is when another one is published."""

    name: str
    record: TableRecord
    index: OpenIndex
    columns: Columns
    originals: Originals
    pictures: Pictures
    encoder: Encoder

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """The columns that rows can have beside ours: the source's, and those that were kept of it."""
        return {**self.originals.types, **self.columns.types}

    def where(self, condition: str) -> Selection:
        """Find the rows that meet an SQL condition on columns of the source or the row's id.

        Kept columns are at hand; for others the whole source is read, but for the columns that are not named.

        Raises:
            InputError: it is no such condition, or the source cannot be read.
        """
        kept = [schema.ROW_ID, *self.columns.types]
        wanted = alike(names_in(condition), list(dict.fromkeys([*kept, *self.types])))
        if set(wanted) <= set(kept):
            rows = pa.Table.from_batches(self.columns.batches).select(kept)
            return Selection(np.asarray(met(rows, condition).to_numpy(), np.bool_))
        names = [name for name in wanted if name != schema.ROW_ID]
        found = []
        for batch in self.originals.scan(names):
            rows = pa.Table.from_batches([batch])
            found.append(rows[schema.ROW_ID].filter(met(rows, condition)))
        row_ids = pa.chunked_array([chunk for one in found for chunk in one.chunks], pa.string())
        return Selection.of(self.columns.numbers_of_all(row_ids), self.index.card.end)

    def number_of(self, row_id: str) -> int:
        """Find the vector id of a row.

        Raises:
            InputError: this version does not have it.
        """
        live = self.index.index.live
        for number in self.columns.numbers_of(row_id):
            if live is None or live.flags[number]:
                return number
        raise InputError(f"row {row_id!r}: not in table {self.name}, index {self.index.card.version}")

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The vector ids of all rows that can be found."""
        live = self.index.index.live
        return np.arange(self.index.card.end) if live is None else live.ids

    def column(self, name: str, numbers: NDArray[np.int64]) -> pa.ChunkedArray:
        """Give one column of the source by vector id.

        Raises:
            InputError: there is no such column.
        """
        if name not in self.types:
            raise InputError(f"table {self.name}: no column {name!r}; there are {', '.join(self.types)}")
        place = self.columns if name in self.columns.types else self.originals
        return place.take(numbers, [name])[name]

    def rows(
        self, numbers: NDArray[np.int64], scores: NDArray[np.float32], named: Collection[str], *, others: bool
    ) -> pa.Table:
        """Give rows by vector id: our columns, then the source's.

        Args:
            named: columns that are asked for by name, in any case.
            others: whether those that are not named come too, but for vectors and columns of bytes.
        """
        meant = alike(set(named), [schema.VECTOR, *self.types])
        wanted = [name for name in self.types if name in meant or (others and not _has_bytes(self.types[name]))]
        kept = [name for name in wanted if name in self.columns.types]
        rest = [name for name in wanted if name not in self.columns.types]
        ours = self.columns.take(numbers, [schema.ROW_ID, *kept])
        theirs = self.originals.take(numbers, rest) if rest else ours
        found = {
            schema.ROW_ID: ours[schema.ROW_ID].cast(pa.string()),
            schema.SOURCE_ID: pa.repeat(self.record.source, len(numbers)),
            schema.SIMILARITY: pa.array(scores, pa.float32()),
        }
        if schema.VECTOR in meant:
            vectors = self.index.index.exact.take(numbers)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # float16 took a little of it
            found[schema.VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.record.d)
        for name in wanted:
            column = ours[name] if name in kept else theirs[name]
            found[free_name(name, {*found, *schema.RESULTS}, "_source")] = column
        return pa.table(found)


def open_table(store: Store, table: str, record: TableRecord, fetch: FetchSpec, encoder: Encoder) -> OpenTable:
    """Open the published version of a table.

    Raises:
        InputError: nothing is published, or an index of another space.
        IncompleteError: a file of it is missing or damaged.
    """
    index = open_index(store, table)
    if index.card.space != record.space:
        raise InputError(f"table {table}: its index is of space {index.card.space}, its rows of {record.space}")
    columns = open_columns(store, index, record)
    pictures = Pictures(store, index, record, fetch)
    return OpenTable(table, record, index, columns, Originals(index, record), pictures, encoder)


def free_name(name: str, taken: Collection[str], suffix: str) -> str:
    """Give a column a name that no other has, with a suffix where it needs one."""
    while name in taken:
        name += suffix
    return name


def _has_bytes(kind: pa.DataType) -> bool:
    """Tell whether a column holds bytes, or has a field that does, as a picture's."""
    if pa.types.is_struct(kind):
        return any(_has_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
