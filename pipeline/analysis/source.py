"""Receipts in, encoded images out: some of a unit's, or one row's, read again from a source that may have changed.

With less patience than the embed job had, and bounds on how far into a row group is read. What a source that changed
raises is in `FAILURES`; that a row is not what it was is a reason, `GoneError`. Knows nothing of what images are for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.config import FetchConfig
from pipeline.embedding.fetch import Fetch, fetch_spec
from pipeline.embedding.read import READ_ERRORS, ReadSpec, UnreadableError, read_unit
from pipeline.errors import InputError, RunError
from pipeline.filesystem import column_bytes, open_parquet
from pipeline.model import Limits
from pipeline.store import Store
from pipeline.table import Receipt, TableRecord, Unit

FAILURES = (*READ_ERRORS, UnreadableError, RunError, KeyError)  # KeyError: a column that the source has no more
DEPTH_BYTES = 256 << 20  # of a row group, before the row that is wanted: Parquet has no way past them
FETCH_S, DECODE_S = 5.0, 2.0  # for one image


class GoneError(Exception):
    """A row of the source that cannot be had any more; says why."""


@dataclass(frozen=True)
class Source:
    """How a table's images are read again, and shards that cannot be: each failure costs its tries once."""

    read: ReadSpec
    fetch: Fetch
    limits: Limits
    unreadable: set[str]  # URLs; whoever finds another adds it


def open_source(store: Store, folder: str, record: TableRecord, unreadable: Iterable[str]) -> Source:
    """Take from a table's folder how its images were read.

    Raises:
        InputError: the folder's config.json is damaged.
    """
    limits = replace(record.preprocess.limits, max_decode_s=min(DECODE_S, record.preprocess.limits.max_decode_s))
    try:
        fetch = FetchConfig.model_validate(store.read_json(f"{folder}/config.json")["fetch"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder}/config.json is damaged: {error}") from error
    allowed = fetch_spec(fetch, limits.max_image_bytes)
    web = replace(allowed.web, timeout_s=min(FETCH_S, allowed.web.timeout_s), retries=0)
    read = ReadSpec(record.image_column, record.image_kind, record.key_column, pa.schema([]), limits.max_image_bytes)
    return Source(read, Fetch(replace(allowed, web=web)), limits, set(unreadable))


def draw_images(source: Source, receipt: Receipt, wanted: int, rng: np.random.Generator) -> Iterator[bytes | None]:
    """Yield images of one row group of a unit, drawn from its first batch; None where there are no bytes."""
    groups = [unit for unit in _row_groups(_footer(receipt), receipt) if unit.rows]
    if not groups:
        return
    weights = np.array([unit.rows for unit in groups], np.float64)
    for batch in read_unit(groups[rng.choice(len(groups), p=weights / weights.sum())], source.read):
        rows = np.sort(rng.choice(batch.num_rows, min(wanted, batch.num_rows), replace=False))
        for piece in _fetched(source, batch.take(pa.array(rows))):
            yield from piece[schema.IMAGE].to_pylist()
        return


def image_of(source: Source, receipt: Receipt, row: int, row_id: str) -> bytes:
    """Read the encoded image of one row of a shard.

    Raises:
        GoneError: the row has another id now, its image is not there, or is too deep in its row group.
    """
    footer = _footer(receipt)
    for unit in _row_groups(footer, receipt):
        if row >= unit.first_row + unit.rows:
            continue
        group_bytes = column_bytes(footer, [unit.first_group], source.read.image_column)
        if group_bytes / unit.rows * (row - unit.first_row) > DEPTH_BYTES:
            raise GoneError("it lies too deep in a large row group to be read again")
        for batch in read_unit(unit, source.read):
            first = batch[schema.ROW][0].as_py()
            if row < first + batch.num_rows:
                return _image(source, batch.slice(row - first, 1), row_id)
    raise GoneError("its shard has fewer rows now")


def texts(column: pa.ChunkedArray) -> list[str]:
    """Take texts out of a column; in a stranger's Parquet they may be any bytes."""
    return [(value or b"").decode(errors="replace") for value in column.cast(pa.binary()).to_pylist()]


def _image(source: Source, row: pa.Table, row_id: str) -> bytes:
    if texts(row[schema.ROW_ID]) != [row_id]:
        raise GoneError("the source has another row in its place now")
    [piece] = _fetched(source, row)
    image: bytes | None = piece[schema.IMAGE][0].as_py()
    if image is None:
        raise GoneError(texts(piece[schema.ERROR])[0] or "the source has no bytes there now")
    return image


def _fetched(source: Source, rows: pa.Table) -> Iterator[pa.Table]:
    yield from source.fetch(rows) if schema.REFERENCE in rows.column_names else [rows]


def _footer(receipt: Receipt) -> pq.FileMetaData:
    with open_parquet(receipt.shard) as file:
        return file.metadata


def _row_groups(footer: pq.FileMetaData, receipt: Receipt) -> Iterator[Unit]:
    """Cut a unit into its row groups as the shard has them now."""
    first = receipt.first_row
    for group in range(receipt.first_group, min(receipt.first_group + receipt.groups, footer.num_row_groups)):
        rows = footer.row_group(group).num_rows
        yield Unit(receipt.unit, receipt.shard, first, rows, group, 1)
        first += rows
