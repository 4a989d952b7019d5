"""Units in, image batches out: one Ray Data read task per unit, streaming record batches of bounded bytes.

A batch has the unit, the row number within the shard, the key as text, the encoded bytes or a reference to them, the
kept columns, and an empty reason and error. Of a huge row group only the pages in use are in memory. A shard that
cannot be read is tried again from where it failed; then one row says so in place of the rows that are missing.
"""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import Datasource, ReadTask

from pipeline import schema
from pipeline.filesystem import FINAL_ERRORS, STORE_ERRORS, column_bytes, fingerprint_of, open_parquet
from pipeline.schema import Reason
from pipeline.table import Unit

logger = logging.getLogger(__name__)

BATCH_BYTES = 16 << 20  # of encoded images in memory at once, twice over
MAX_BATCH_ROWS = 1024
NOTHING = np.empty(0, np.int64)
TRIES, WAIT_S = 4, 2.0  # after those of the store's client; each wait up to twice as long as the one before
READ_ERRORS = (pa.ArrowException, *STORE_ERRORS)


class UnreadableError(Exception):
    """The rest of a unit cannot be read."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row = row  # the first that is missing, within its shard


@dataclass(frozen=True)
class ReadSpec:
    """Which columns of the source become which of ours."""

    image_column: str
    image_kind: str
    key_column: str | None
    kept: pa.Schema  # columns to carry along, as they are written
    max_image_bytes: int  # longer ones go no further


class UnitSource(Datasource):  # type: ignore[misc]  # Ray's classes are untyped
    """One read task per unit.

    Args:
        left_out: by shard, the rows whose key an earlier row has.
        rows_each: how many rows of each unit to read, for a trial; None: all.
    """

    def __init__(
        self,
        units: list[Unit],
        spec: ReadSpec,
        left_out: dict[str, NDArray[np.int64]],
        rows_each: int | None = None,
    ) -> None:
        super().__init__()
        self.rows_each = rows_each
        self.units = units
        self.spec = spec
        self.left_out = left_out

    def estimate_inmemory_data_size(self) -> int | None:
        """Say that it is not known: Ray then sizes by what the tasks return."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Make a task for each unit, however many Ray would like."""
        return [self._task(unit) for unit in self.units]

    def _task(self, unit: Unit) -> ReadTask:
        rows = min(unit.rows, self.rows_each or unit.rows)
        known = BlockMetadata(num_rows=rows, size_bytes=None, exec_stats=None, input_files=(unit.shard,))
        return ReadTask(partial(read_or_say_why, unit, self.spec, self._left_out_of(unit), rows), known)

    def _left_out_of(self, unit: Unit) -> NDArray[np.int64]:
        rows = self.left_out.get(unit.shard, NOTHING)
        first, last = np.searchsorted(rows, [unit.first_row, unit.first_row + unit.rows])
        return rows[first:last]


def read_or_say_why(unit: Unit, spec: ReadSpec, left_out: NDArray[np.int64], max_rows: int) -> Iterable[pa.Table]:
    """Stream a unit's first rows as `read_unit` does; if they end early, one row more says why."""
    left = max_rows
    try:
        for batch in read_unit(unit, spec, left_out):
            yield batch.slice(0, left)
            left -= batch.num_rows
            if left <= 0:
                return
    except UnreadableError as error:
        yield _unreadable_batch(unit, error, spec)


def read_unit(unit: Unit, spec: ReadSpec, left_out: NDArray[np.int64] = NOTHING) -> Iterable[pa.Table]:
    """Stream a unit's rows as image batches, in the order of the shard; those of ``left_out`` without their image.

    Raises:
        UnreadableError: the shard cannot be read, not even again, or is not what it was when it was listed.
    """
    row, failures = unit.first_row, 0
    while True:
        try:
            for piece in _batches_from(row, unit, spec):
                yield _refused(_image_batch(piece, unit, row, spec), spec, left_out)
                row += piece.num_rows
            return
        except READ_ERRORS as error:
            failures += 1
            is_final = isinstance(error, FINAL_ERRORS) or "://" not in unit.shard or failures == TRIES
            if is_final:
                raise UnreadableError(row, f"shard {unit.shard} cannot be read from row {row} on: {error}") from error
            wait_s = random.uniform(0, WAIT_S * 2**failures)
            logger.warning("unit=%s row=%d read again in %.1f s: %s", unit.id, row, wait_s, error)
            time.sleep(wait_s)


def _batches_from(row: int, unit: Unit, spec: ReadSpec) -> Iterator[pa.RecordBatch]:
    """Yield the unit's rows from one of them on, as the shard has them."""
    columns = {spec.image_column, *spec.kept.names, *([spec.key_column] if spec.key_column is not None else [])}
    if unit.fingerprint is not None and fingerprint_of(unit.shard) != unit.fingerprint:
        raise UnreadableError(row, f"shard {unit.shard} was rewritten while this run was at it; the next run sees it")
    with open_parquet(unit.shard) as file:
        groups, first_row = list(range(unit.first_group, unit.first_group + unit.groups)), unit.first_row
        rows = _batch_rows(file.metadata, groups, spec.image_column)
        while groups and first_row + (group_rows := file.metadata.row_group(groups[0]).num_rows) <= row:
            first_row += group_rows
            del groups[0]
        for batch in file.iter_batches(rows, row_groups=groups, columns=sorted(columns)):
            rest = batch.slice(max(0, row - first_row))
            first_row += batch.num_rows
            if rest.num_rows:
                yield from _pieces(rest, spec.image_column)


def _batch_rows(footer: pq.FileMetaData, groups: list[int], image_column: str) -> int:
    """Choose how many rows make BATCH_BYTES, by what the footer says of the image column.

    A power of two: where images are alike, batches of such sizes add up to the encoder's without a rest.
    """
    total_rows = sum(footer.row_group(number).num_rows for number in groups)
    image_bytes = column_bytes(footer, groups, image_column)
    mean_bytes = max(1, image_bytes // max(1, total_rows))
    rows = int(np.clip(BATCH_BYTES // mean_bytes, 1, MAX_BATCH_ROWS))
    return 1 << (rows.bit_length() - 1)


def _pieces(batch: pa.RecordBatch, image_column: str) -> Iterator[pa.RecordBatch]:
    """Halve a batch until it keeps to twice the bytes wanted: means mislead where sizes are very uneven."""
    if batch.num_rows > 1 and batch.column(image_column).nbytes > 2 * BATCH_BYTES:
        half = batch.num_rows // 2
        yield from _pieces(batch.slice(0, half), image_column)
        yield from _pieces(batch.slice(half), image_column)
    else:
        yield batch


def _image_batch(batch: pa.RecordBatch, unit: Unit, first_row: int, spec: ReadSpec) -> pa.Table:
    count = batch.num_rows
    rows = np.arange(first_row, first_row + count)
    if spec.key_column is None:
        keys = pa.array([f"{unit.shard}#{row}" for row in rows], pa.string())
    else:
        keys = batch.column(spec.key_column).cast(pa.string())
    columns: dict[str, pa.Array] = {
        schema.UNIT: pa.repeat(unit.id, count),
        schema.SHARD: pa.repeat(unit.shard, count),
        schema.ROW: pa.array(rows, pa.int64()),
        schema.ROW_ID: keys,
        schema.REASON: pa.nulls(count, pa.string()),
        schema.ERROR: pa.nulls(count, pa.string()),
        **_images(batch.column(spec.image_column), unit, spec),
    }
    for field in spec.kept:
        column = batch.column(field.name)
        columns[field.name] = column if column.type == field.type else column.cast(field.type)
    return pa.table(columns)


def _unreadable_batch(unit: Unit, error: UnreadableError, spec: ReadSpec) -> pa.Table:
    """Make the one row that stands for those of a unit that cannot be read."""
    columns: dict[str, pa.Array] = {
        schema.UNIT: pa.array([unit.id]),
        schema.SHARD: pa.array([unit.shard]),
        schema.ROW: pa.array([error.row], pa.int64()),
        schema.ROW_ID: pa.array([""]),
        schema.REASON: pa.array([schema.UNREADABLE]),
        schema.ERROR: pa.array([str(error)]),
        schema.IMAGE: pa.nulls(1, pa.large_binary()),
    }
    if spec.image_kind != "bytes":
        columns[schema.REFERENCE] = pa.nulls(1, pa.string())
    return pa.table({**columns, **{field.name: pa.nulls(1, field.type) for field in spec.kept}})


def _refused(batch: pa.Table, spec: ReadSpec, left_out: NDArray[np.int64]) -> pa.Table:
    """Give rows that go no further their reason, and nothing to carry."""
    rows = batch[schema.ROW].to_numpy()
    duplicate = np.isin(rows, left_out)
    sizes = pc.fill_null(pc.binary_length(batch[schema.IMAGE]), 0).to_numpy()
    too_long = (sizes > spec.max_image_bytes) & ~duplicate
    if not (duplicate | too_long).any():
        return batch
    reasons: list[str | None] = [None] * len(rows)
    errors: list[str | None] = [None] * len(rows)
    for i in np.flatnonzero(duplicate):
        reasons[i] = Reason.DUPLICATE_KEY.value
        key = batch[schema.ROW_ID][i].as_py()
        errors[i] = schema.error_text(Reason.DUPLICATE_KEY, int(rows[i]), f"an earlier row has the key {key!r}")
    for i in np.flatnonzero(too_long):
        reasons[i] = Reason.TOO_MANY_BYTES.value
        detail = f"{sizes[i]} bytes, at most {spec.max_image_bytes} are read"
        errors[i] = schema.error_text(Reason.TOO_MANY_BYTES, int(rows[i]), detail)
    # if_else would keep the bytes behind the nulls
    kept = batch[schema.IMAGE].take(pa.array(np.arange(len(rows)), mask=duplicate | too_long))
    return schema.replace_columns(batch, [], {schema.IMAGE: kept, **schema.outcome_columns(reasons, errors)})


def _images(column: pa.Array, unit: Unit, spec: ReadSpec) -> dict[str, pa.Array]:
    """Split an image column into bytes and references; a source of bytes has no references."""
    if spec.image_kind == "bytes":
        return {schema.IMAGE: column.cast(pa.large_binary())}
    if spec.image_kind == "reference":
        nothing = pa.nulls(len(column), pa.large_binary())
        return {schema.IMAGE: nothing, schema.REFERENCE: _resolved(column, unit)}
    held = pc.struct_field(column, "bytes").cast(pa.large_binary())
    paths = pc.if_else(pc.is_valid(held), None, pc.struct_field(column, "path").cast(pa.string()))
    return {schema.IMAGE: held, schema.REFERENCE: _resolved(paths, unit)}


def _resolved(paths: pa.Array, unit: Unit) -> pa.Array:
    """Take paths that are neither absolute nor URLs from the shard's folder."""
    folder = unit.shard.rpartition("/")[0]
    # Parquet's text may be any bytes; what is none names no file that there is
    texts = [None if path is None else path.decode(errors="replace") for path in paths.cast(pa.binary()).to_pylist()]
    return pa.array(
        [path if path is None or path.startswith("/") or "://" in path else f"{folder}/{path}" for path in texts],
        pa.string(),
    )
