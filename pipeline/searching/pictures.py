"""From vector ids back to pictures: from the source, as the embed job read them, or as small as tables keep them."""

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


class Pictures:
    """The pictures behind an index, found by the receipts that it was built from."""

    def __init__(self, store: Store, index: OpenIndex, record: TableRecord, fetch: FetchSpec) -> None:
        self.store = store
        self.index = index
        self.record = record
        self.fetch = Fetch(fetch)

    def of(self, number: int) -> bytes | None:
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

    def thumbnail(self, number: int) -> bytes | None:
        """Read the thumbnail that the table keeps of one vector id; None where there is none, or not any more."""
        if self.record.preprocess.thumbnail_px is None:
            return None
        receipt, rank = self.index.place_of(number)
        for file in receipt.data:
            if rank < file.rows:
                return self._thumbnail_in(file, rank)
            rank -= file.rows
        raise RuntimeError(f"unit {receipt.unit}: its receipt names fewer rows than the index holds")

    def _thumbnail_in(self, file: File, rank: int) -> bytes | None:
        path = self.store.path(f"{table_folder(self.index.card.table)}/{file.path}")
        try:
            with pq.ParquetFile(path, filesystem=self.store.filesystem, page_checksum_verification=True) as opened:
                for group in range(opened.num_row_groups):
                    rows = opened.metadata.row_group(group).num_rows
                    if rank < rows:
                        column = opened.read_row_group(group, columns=[schema.THUMBNAIL])[schema.THUMBNAIL]
                        thumbnail: bytes | None = column[rank].as_py()
                        return thumbnail
                    rank -= rows
        except FileNotFoundError:  # its shard was embedded anew
            pass
        return None

    def _image(self, row: pa.Table) -> bytes | None:
        if schema.REFERENCE in row.column_names:
            row = pa.concat_tables(self.fetch(row))
        image: bytes | None = row[schema.IMAGE][0].as_py()
        return image


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
