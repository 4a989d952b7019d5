"""From vector ids back to what the table and the source hold of those rows: kept columns, and the picture itself.

Kept columns come from the table's files; pictures from the source's shards, read as the embed job read them.
"""

from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.embedding.fetch import Fetch, FetchSpec
from pipeline.embedding.read import READ_ERRORS, ReadSpec, UnreadableError, read_unit
from pipeline.filesystem import open_parquet
from pipeline.searching.index import OpenIndex
from pipeline.store import Store
from pipeline.table import File, Receipt, TableRecord, Unit, table_folder


class Rows:
    """The rows behind an index, found by the receipts that it was built from."""

    def __init__(self, store: Store, index: OpenIndex, record: TableRecord, fetch: FetchSpec) -> None:
        self.store = store
        self.index = index
        self.record = record
        self.fetch = Fetch(fetch)

    def kept(self, number: int) -> dict[str, object]:
        """Read the kept columns of one vector id; none where its shard was embedded anew since the index was built."""
        receipt, rank = self.index.place_of(number)
        if not self.record.kept:
            return {}
        for file in receipt.data:
            if rank < file.rows:
                return self._row(file, rank)
            rank -= file.rows
        raise RuntimeError(f"unit {receipt.unit}: its receipt names fewer rows than the index holds")

    def _row(self, file: File, rank: int) -> dict[str, object]:
        columns = [name for name in self.record.kept if name not in self.record.partition_by]
        if not columns:
            return _partition_values(file.path)
        path = self.store.path(f"{table_folder(self.index.card.table)}/{file.path}")
        try:
            rows = pq.read_table(
                path,
                columns=columns,
                filesystem=self.store.filesystem,
                partitioning=None,
                page_checksum_verification=True,
            )
        except FileNotFoundError:
            return {}
        return {**_partition_values(file.path), **rows.slice(rank, 1).to_pylist()[0]}

    def picture(self, number: int) -> bytes | None:
        """Read the encoded image of one vector id from its source; None where it cannot be had any more."""
        row_id = self.index.row_ids[number].as_py()
        receipt, _ = self.index.place_of(number)
        limit = self.record.preprocess.limits.max_image_bytes
        spec = ReadSpec(self.record.image_column, self.record.image_kind, self.record.key_column, pa.schema([]), limit)
        try:
            for unit in _row_groups(receipt):
                if self.record.key_column is not None and row_id not in _keys(unit, self.record.key_column):
                    continue
                for batch in read_unit(unit, spec):
                    found = batch.filter(pc.equal(batch[schema.ROW_ID], row_id))
                    if found.num_rows:
                        return self._image(found)
        except (UnreadableError, IndexError, *READ_ERRORS):  # the shard may have been rewritten
            return None
        return None

    def _image(self, row: pa.Table) -> bytes | None:
        if schema.REFERENCE in row.column_names:
            row = pa.concat_tables(self.fetch(row))
        image: bytes | None = row[schema.IMAGE][0].as_py()
        return image


def _partition_values(path: str) -> dict[str, object]:
    """Read a row's partition columns off its file's folders, as text."""
    parts = (part.partition("=") for part in path.split("/")[1:-1])
    return {
        name: None if value == schema.HIVE_NULL else unquote(value)
        for name, _, value in parts
        if name != schema.UNIT_FOLDER
    }


def _row_groups(receipt: Receipt) -> list[Unit]:
    """Cut a unit into its row groups, so that one picture costs one row group."""
    with open_parquet(receipt.shard) as file:
        rows = [file.metadata.row_group(receipt.first_group + i).num_rows for i in range(receipt.groups)]
    return [
        Unit(
            id=receipt.unit,
            shard=receipt.shard,
            first_row=receipt.first_row + sum(rows[:i]),
            rows=count,
            first_group=receipt.first_group + i,
            groups=1,
        )
        for i, count in enumerate(rows)
    ]


def _keys(unit: Unit, column: str) -> set[str]:
    with open_parquet(unit.shard) as file:
        return set(file.read_row_group(unit.first_group, [column]).column(0).cast(pa.string()).to_pylist())
