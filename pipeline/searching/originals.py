"""What the source says of an index's rows: any of its columns, by vector id, read from the shards themselves.

In: an open index and its table's record. Out: Arrow columns in the order asked for. A row is found by its key, or, in a
source without keys, by its number; one that its shard does not have any more has nulls. Columns that were kept are in
`Columns`, which is faster. Knows nothing of queries.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.errors import InputError
from pipeline.filesystem import STORE_ERRORS, open_parquet
from pipeline.searching.index import OpenIndex
from pipeline.table import Receipt, TableRecord

READERS = 8  # shards read at a time: they may be far away
BATCH_ROWS = 256  # of a shard, in memory at once: of images a hundred megabytes
SCAN_ROWS = 1 << 16  # likewise, where a condition is tried on every row
READ_ERRORS = (pa.ArrowException, *STORE_ERRORS)


class Originals:
    """The shards behind one version of an index."""

    def __init__(self, index: OpenIndex, record: TableRecord) -> None:
        self.index = index
        self.record = record

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """The source's columns, as the first shard has them that can be read; none where there is no such shard."""
        for shard in dict.fromkeys(span.receipt.shard for span in self.index.spans):
            try:
                with open_parquet(shard) as file:
                    return {field.name: field.type for field in file.schema_arrow}
            except READ_ERRORS:
                continue
        return {}

    def take(self, numbers: NDArray[np.int64], names: Sequence[str]) -> pa.Table:
        """Give columns of some vector ids, in their order."""
        places: dict[str, tuple[Receipt, list[int]]] = {}
        for place, number in enumerate(numbers):
            receipt, _ = self.index.place_of(int(number))
            places.setdefault(receipt.unit, (receipt, []))[1].append(place)
        row_ids = self.index.row_ids.take(pa.array(numbers, pa.int64()))
        form = pa.schema([pa.field(name, self.types[name]) for name in names])

        def read(of_unit: tuple[Receipt, list[int]]) -> pa.Table:
            receipt, here = of_unit
            wanted = row_ids.take(pa.array(here, pa.int64())).combine_chunks()
            try:
                with open_parquet(receipt.shard) as file:
                    return _rows(file, self._rows_in_unit(file, receipt, wanted), receipt, form)
            except READ_ERRORS:  # the shard is gone, or not what it was
                return _nothing(len(here), form)

        with ThreadPoolExecutor(READERS) as pool:
            parts = list(pool.map(read, places.values()))
        if not parts:
            return form.empty_table()
        order = np.argsort(np.concatenate([here for _, here in places.values()]))
        return pa.concat_tables(parts).take(pa.array(order))

    def scan(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield `_row_id` and columns of every row that the units behind the index have in their shards now.

        Raises:
            InputError: a shard cannot be read, so that nobody can say which of its rows meet a condition.
        """
        form = pa.schema([pa.field(schema.ROW_ID, pa.string()), *(pa.field(name, self.types[name]) for name in names)])
        for span in self.index.spans:
            try:
                yield from self._scanned(span.receipt, form, names)
            except READ_ERRORS as error:
                raise InputError(
                    f"shard {span.receipt.shard} cannot be read: {error}; conditions on columns that the table keeps "
                    f"({', '.join(self.record.kept) or 'none'}) do not need it"
                ) from error

    def _scanned(self, receipt: Receipt, form: pa.Schema, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        key = self.record.key_column
        row = receipt.first_row
        with open_parquet(receipt.shard) as file:
            columns = list(dict.fromkeys([*names, *([key] if key else [])])) or file.schema_arrow.names[:1]
            for batch in file.iter_batches(SCAN_ROWS, row_groups=_groups(receipt), columns=columns):
                if key is None:
                    ids = pa.array([f"{receipt.shard}#{row + i}" for i in range(batch.num_rows)], pa.string())
                else:
                    ids = batch.column(key).cast(pa.string())
                row += batch.num_rows
                arrays = [ids, *(batch.column(field.name).cast(field.type) for field in list(form)[1:])]
                yield pa.RecordBatch.from_arrays(arrays, schema=form)

    def _rows_in_unit(self, file: pq.ParquetFile, receipt: Receipt, row_ids: pa.Array) -> NDArray[np.int64]:
        """Find rows by their ids: numbers within the unit, -1 where there is none."""
        if self.record.key_column is None:
            rows = np.array([int(row_id.rpartition("#")[2]) for row_id in row_ids.to_pylist()], np.int64)
            return rows - receipt.first_row
        keys = file.read_row_groups(_groups(receipt), [self.record.key_column]).column(0).cast(pa.string())
        found = pc.index_in(row_ids.cast(pa.string()), keys)
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)


def _rows(file: pq.ParquetFile, rows: NDArray[np.int64], receipt: Receipt, form: pa.Schema) -> pa.Table:
    """Read rows of a unit by their numbers in it, in the order asked for; only the row groups that have some."""
    parts, found = [], []
    start = 0
    for group in _groups(receipt):
        end = start + file.metadata.row_group(group).num_rows
        if ((rows >= start) & (rows < end)).any():
            first = start
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=form.names):
                here = np.flatnonzero((rows >= first) & (rows < first + batch.num_rows))
                if len(here):
                    some = batch.take(pa.array(rows[here] - first))
                    parts.append(pa.Table.from_batches([some]).select(form.names).cast(form))
                    found.append(here)
                first += batch.num_rows
        start = end
    missing = np.flatnonzero((rows < 0) | (rows >= start))
    parts.append(_nothing(len(missing), form))
    found.append(missing)
    return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(found))))


def _nothing(rows: int, form: pa.Schema) -> pa.Table:
    return pa.table({field.name: pa.nulls(rows, field.type) for field in form}, schema=form)


def _groups(receipt: Receipt) -> list[int]:
    return list(range(receipt.first_group, receipt.first_group + receipt.groups))
