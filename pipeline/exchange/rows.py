"""The committed rows of a table as a stream: exactly those that its live receipts name, in the order of vector ids.

In: a store, a table, perhaps some of its columns. Out: Arrow record batches of one schema, hive partitions among their
columns. Every file's digest is checked as it is read; a few files are in memory at a time. Knows no other format.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.dataset as ds

from pipeline import schema
from pipeline.errors import IncompleteError, InputError
from pipeline.exchange.ahead import ahead
from pipeline.indexing.vectors import lay_out
from pipeline.searching.relations import table_relation
from pipeline.stopping import alive
from pipeline.store import Store
from pipeline.table import File, TableRecord, live_receipts, read_checked, read_receipts, read_record, table_folder

FILES_AHEAD = 4  # read before they are asked for: they may be far away
BATCH_ROWS = 4096


@dataclass(frozen=True)
class Rows:
    """The rows of a table, as they were when it was opened."""

    store: Store
    table: str
    record: TableRecord
    files: tuple[File, ...]  # in the order of vector ids, as an index that is built anew has them
    schema: pa.Schema  # of every batch

    @property
    def count(self) -> int:
        """How many there are, as the receipts say."""
        return sum(file.rows for file in self.files)

    @property
    def kept(self) -> list[str]:
        """The columns that came from the source."""
        return [name for name in self.schema.names if name in self.record.kept]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read them, at most BATCH_ROWS at a time.

        Raises:
            IncompleteError: a file is missing or damaged.
        """
        for rows in ahead(partial(_read, self), self.files, FILES_AHEAD):
            alive()
            yield from rows.to_batches(BATCH_ROWS)

    def check_count(self, written: int, target: str) -> None:
        """Hold what was written against the receipts.

        Raises:
            IncompleteError: it is not as many rows.
        """
        if written != self.count:
            raise IncompleteError(
                f"{target}: {written} rows written; wanted {self.count}, as table {self.table} has; export it again"
            )


def rows_of(store: Store, table: str, columns: Sequence[str] | None = None) -> Rows:
    """Open a table's rows.

    Args:
        columns: which, in this order; None: all.

    Raises:
        InputError: there is no such table or column.
    """
    record = read_record(store, table)
    if record is None:
        raise InputError(f"table {table}: has no table.json")
    form = table_relation(store, table).schema.remove_metadata()
    if unknown := sorted(set(columns or ()) - set(form.names)):
        raise InputError(f"table {table}: no column {unknown[0]!r}; there are {', '.join(form.names)}")
    if columns is not None:
        form = pa.schema([form.field(name) for name in columns])
    live = live_receipts(read_receipts(store, table_folder(table)).values()).values()
    files = tuple(file for span in lay_out(live) for file in span.receipt.data)
    return Rows(store, table, record, files, form)


def _read(rows: Rows, file: File) -> pa.Table:
    """Read one file, and its partitions off its path."""
    found = read_checked(rows.store, table_folder(rows.table), file)
    wanted = [name for name in rows.schema.names if name in rows.record.partition_by]
    if wanted:
        folders = pa.schema([(name, pa.type_for_alias(rows.record.kept[name])) for name in rows.record.partition_by])
        values = ds.get_partition_keys(ds.partitioning(folders, flavor="hive").parse(file.path))
        columns = {name: pa.repeat(pa.scalar(values.get(name), folders.field(name).type), file.rows) for name in wanted}
        found = schema.replace_columns(found, [], columns)
    return found.select(rows.schema.names).cast(rows.schema)
