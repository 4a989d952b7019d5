"""What an index's rows are called and what was kept of them, by vector id: from files that are mapped, not read.

In: an open index and its table's record. Out: `Columns`. A table's own files are read a column at a time, and a query
finds twenty rows here and there; so they are copied once for each version, in the order of vector ids, into this
machine's cache, where all processes share the pages.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.machine import cache_folder
from pipeline.searching.index import OpenIndex
from pipeline.store import Store
from pipeline.table import File, TableRecord, table_folder

ROWS_AT_ONCE = 1 << 20  # of the copy: what is held while it is made, and what one look-up goes through
KEPT_COPIES = 3  # of a table on one machine: the one that answers, the one before it, the one that is coming
ROWS, IDS = "rows.arrow", "ids.npy"
Row = dict[str, object]


@dataclass(frozen=True)
class Columns:
    """Mapped columns of the rows of one version; safe to use from many threads."""

    batches: tuple[pa.RecordBatch, ...]  # of ROWS_AT_ONCE rows each, the last of the rest
    hashes: NDArray[np.uint64]  # of row ids, ascending
    numbers: NDArray[np.uint64]  # the vector ids of these

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The kept columns."""
        return {
            field.name: field.type
            for field in self.batches[0].schema
            if field.name not in (schema.ROW_ID, schema.CONTENT_HASH)
        }

    def rows(self, numbers: Sequence[int] | NDArray[np.int64], names: Sequence[str]) -> list[Row]:
        """Give columns of some vector ids, in their order; row ids are a column too."""
        rows: list[Row] = self.take(np.asarray(numbers, np.int64), names).to_pylist()
        return rows

    def take(self, numbers: NDArray[np.int64], names: Sequence[str]) -> pa.Table:
        """Give columns of some vector ids as Arrow, in their order."""
        if len(self.batches) == 1:
            return pa.Table.from_batches([self.batches[0].select(list(names)).take(pa.array(numbers))])
        places = numbers // ROWS_AT_ONCE
        parts, found = [], []
        for place in np.unique(places):
            here = np.flatnonzero(places == place)
            batch = self.batches[int(place)].select(list(names))
            parts.append(batch.take(pa.array(numbers[here] - place * ROWS_AT_ONCE)))
            found.append(here)
        form = pa.schema([self.batches[0].schema.field(name) for name in names])
        table = pa.Table.from_batches(parts, form)
        return table if len(parts) < 2 else table.take(pa.array(np.argsort(np.concatenate(found))))

    def numbers_of(self, row_id: str) -> list[int]:
        """Find the vector ids that bear a row's id: none, one, or also those of rows that are gone."""
        (wanted,) = _hashed([row_id])
        low, high = (int(np.searchsorted(self.hashes, wanted, side=side)) for side in ("left", "right"))
        suspects = [int(number) for number in self.numbers[low:high]]
        named = self.rows(suspects, [schema.ROW_ID])
        return [number for number, row in zip(suspects, named, strict=True) if row[schema.ROW_ID] == row_id]

    def numbers_of_all(self, row_ids: pa.ChunkedArray) -> NDArray[np.int64]:
        """Find the vector ids of many rows, ascending; those that there are not, have none."""
        suspects = np.sort(self.numbers[np.isin(self.hashes, _hashed(row_ids.to_pylist()))].astype(np.int64))
        named = self.take(suspects, [schema.ROW_ID])[schema.ROW_ID]
        is_wanted = pc.is_in(named, row_ids.cast(named.type).combine_chunks())
        return np.asarray(suspects[is_wanted.to_numpy()])


def open_columns(store: Store, index: OpenIndex, record: TableRecord) -> Columns:
    """Map the columns of a version, after copying them where this machine has not done so yet."""
    card = index.card
    table = hashlib.sha256(f"{store.url}\n{card.table}".encode()).hexdigest()[:16]
    folder = cache_folder() / "columns" / f"{table}-{card.version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            _copy(store, index, record, made)
            try:
                made.rename(folder)
            except OSError:  # another process was faster
                if not folder.is_dir():
                    raise
        _remove_old(folder.parent, table)
    reader = pa.ipc.open_file(pa.memory_map(str(folder / ROWS)))
    batches = tuple(reader.get_batch(number) for number in range(reader.num_record_batches))
    hashes, numbers = np.load(folder / IDS, mmap_mode="r")
    return Columns(batches, hashes, numbers)


def _copy(store: Store, index: OpenIndex, record: TableRecord, folder: Path) -> None:
    """Write columns and ids of all rows, in the order of vector ids, ROWS_AT_ONCE at a time."""
    form = _form(store, index, record)
    waiting: list[pa.Table] = []
    with pa.OSFile(str(folder / ROWS), "wb") as sink, pa.ipc.new_file(sink, form) as writer:
        held = 0
        for part in _parts(store, index, record, form):
            waiting.append(part)
            held += part.num_rows
            while held >= ROWS_AT_ONCE:
                together = pa.concat_tables(waiting).combine_chunks()
                writer.write_table(together.slice(0, ROWS_AT_ONCE), ROWS_AT_ONCE)
                waiting = [together.slice(ROWS_AT_ONCE)]
                held -= ROWS_AT_ONCE
        rest = pa.concat_tables(waiting).combine_chunks()
        if rest.num_rows or index.card.end == 0:
            writer.write_table(rest, ROWS_AT_ONCE)
    hashes = np.concatenate([_hashed(chunk.to_pylist()) for chunk in index.row_ids.chunks])
    order = np.argsort(hashes, kind="stable")
    np.save(folder / IDS, np.stack([hashes[order], order.astype(np.uint64)]))
    for name in (ROWS, IDS):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def _form(store: Store, index: OpenIndex, record: TableRecord) -> pa.Schema:
    """Give the copy's columns: the row's id, the first 64 bits of its contents' hash, and what was kept."""
    types: dict[str, pa.DataType] = {}
    for span in index.spans:
        try:
            path = store.path(f"{table_folder(index.card.table)}/{span.receipt.data[0].path}")
            found = pq.read_schema(path, filesystem=store.filesystem)
            types = {name: found.field(name).type for name in found.names}
            break
        except FileNotFoundError:  # of a shard that was embedded anew
            continue
    kept = [pa.field(name, types.get(name, pa.string())) for name in record.kept]
    return pa.schema([pa.field(schema.ROW_ID, pa.large_string()), pa.field(schema.CONTENT_HASH, pa.uint64()), *kept])


def _parts(store: Store, index: OpenIndex, record: TableRecord, form: pa.Schema) -> Iterator[pa.Table]:
    """Read the rows of every vector id, file by file; rows that are gone have nothing but their id."""
    end = 0
    for span in index.spans:
        yield _nothing(index, end, span.base - end, form)
        end = span.base
        for file in span.receipt.data:
            yield _of_file(store, index, record, file, end, form)
            end += file.rows
    yield _nothing(index, end, index.card.end - end, form)


def _of_file(store: Store, index: OpenIndex, record: TableRecord, file: File, first: int, form: pa.Schema) -> pa.Table:
    folders = _partition_values(file.path)
    wanted = [name for name in record.kept if name not in folders]
    hashes = [schema.CONTENT_HASH] if record.content_hashes else []
    try:
        rows = pq.read_table(
            store.path(f"{table_folder(index.card.table)}/{file.path}"),
            columns=[*wanted, *hashes] or [schema.ROW_ID],
            filesystem=store.filesystem,
            partitioning=None,
            page_checksum_verification=True,
        )
    except FileNotFoundError:  # its shard was embedded anew since the index was built
        return _nothing(index, first, file.rows, form)
    columns = {name: rows[name] for name in wanted}
    columns |= {name: pa.repeat(pa.scalar(value, pa.string()), file.rows) for name, value in folders.items()}
    columns[schema.ROW_ID] = index.row_ids.slice(first, file.rows)
    columns[schema.CONTENT_HASH] = _first_bits(rows[schema.CONTENT_HASH]) if hashes else pa.nulls(file.rows)
    return pa.table({name: columns[name] for name in form.names}).cast(form)


def _nothing(index: OpenIndex, first: int, rows: int, form: pa.Schema) -> pa.Table:
    nulls = {field.name: pa.nulls(rows, field.type) for field in form}
    return pa.table({**nulls, schema.ROW_ID: index.row_ids.slice(first, rows)}).cast(form)


def _partition_values(path: str) -> dict[str, str | None]:
    """Read a file's partition columns off its folders, as text."""
    parts = (part.partition("=") for part in path.split("/")[1:-1])
    return {
        name: None if value == schema.HIVE_NULL else unquote(value)
        for name, _, value in parts
        if name != schema.UNIT_FOLDER
    }


def _first_bits(digests: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Cut hexadecimal digests to numbers of 64 bits."""
    digits = pc.utf8_slice_codeunits(digests, 0, 16).combine_chunks().cast(pa.string())
    start, end = (np.frombuffer(digits.buffers()[1], np.int32)[digits.offset + place] for place in (0, len(digits)))
    text = digits.buffers()[2][int(start) : int(end)].to_pybytes() if len(digits) else b""
    return np.frombuffer(bytes.fromhex(text.decode()), ">u8").astype(np.uint64)


def _hashed(row_ids: list[str]) -> NDArray[np.uint64]:
    return np.asarray(pd.util.hash_array(np.array(row_ids, object), categorize=False), np.uint64)


def _remove_old(folder: Path, table: str) -> None:
    """Remove copies of versions that were opened long ago; where they are mapped they stay readable."""
    copies = sorted(folder.glob(f"{table}-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for copy in copies[KEPT_COPIES:]:
        shutil.rmtree(copy, ignore_errors=True)
