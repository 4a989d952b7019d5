"""From a unit of a table back to its pictures: the small ones that the table keeps, else those of the source.

Out: ranks of rows within the unit, and their encoded pictures, some rows at a time. What the source has no more, or has
changed since it was embedded, is left out. Knows nothing of what the pictures are for.
"""

import hashlib
import logging
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import schema
from pipeline.analysis.source import FAILURES, Source
from pipeline.embedding.read import read_unit
from pipeline.indexing.vectors import Span
from pipeline.store import Store
from pipeline.table import TableRecord, Unit, table_folder

logger = logging.getLogger(__name__)

BATCH_ROWS = 256
Shown = tuple[NDArray[np.int64], list[bytes]]  # ranks (m,) within the unit, and as many encoded pictures


def thumbnails(store: Store, table: str, span: Span, wanted: NDArray[np.bool_]) -> Iterator[Shown]:
    """Give the small pictures that the table keeps of a unit's rows.

    Args:
        wanted: by rank, which rows.
    """
    first = 0
    for file in span.receipt.data:
        path = store.path(f"{table_folder(table)}/{file.path}")
        with pq.ParquetFile(path, filesystem=store.filesystem, page_checksum_verification=True) as opened:
            for batch in opened.iter_batches(BATCH_ROWS, columns=[schema.THUMBNAIL]):
                has_one = np.asarray(pc.is_valid(batch.column(0)), np.bool_)
                ranks = np.flatnonzero(wanted[first : first + batch.num_rows] & has_one)
                yield first + ranks, batch.column(0).take(pa.array(ranks)).to_pylist()
                first += batch.num_rows


def originals(
    store: Store, table: str, record: TableRecord, source: Source, span: Span, wanted: NDArray[np.bool_]
) -> Iterator[Shown]:
    """Give the pictures of a unit's rows as the source has them; where it fails, those before."""
    waiting = _wanted(store, table, record, span, wanted)
    receipt = span.receipt
    unit = Unit(receipt.unit, receipt.shard, receipt.first_row, receipt.rows_in, receipt.first_group, receipt.groups)
    try:
        for batch in read_unit(unit, source.read):
            ours = batch.filter(pc.is_in(batch[schema.ROW_ID], pa.array(list(waiting), pa.string())))
            if ours.num_rows:
                pieces = source.fetch(ours) if schema.REFERENCE in ours.column_names else [ours]
                for piece in pieces:
                    yield _matched(piece, waiting)
            if not waiting:
                return
    except FAILURES as error:
        logger.warning("unit=%s pictures not seen from here on: %s", receipt.unit, error)


def _wanted(
    store: Store, table: str, record: TableRecord, span: Span, wanted: NDArray[np.bool_]
) -> dict[str, tuple[int, str | None]]:
    """Give rank and content hash of the rows that are wanted, by row id."""
    names = [schema.ROW_ID, *([schema.CONTENT_HASH] if record.content_hashes else [])]
    found: dict[str, tuple[int, str | None]] = {}
    first = 0
    for file in span.receipt.data:
        path = store.path(f"{table_folder(table)}/{file.path}")
        rows = pq.read_table(path, columns=names, filesystem=store.filesystem, partitioning=None)
        hashes = rows[schema.CONTENT_HASH].to_pylist() if record.content_hashes else [None] * rows.num_rows
        for rank, (row_id, known) in enumerate(zip(rows[schema.ROW_ID].to_pylist(), hashes, strict=True), first):
            if wanted[rank]:
                found[row_id] = rank, known
        first += rows.num_rows
    return found


def _matched(rows: pa.Table, waiting: dict[str, tuple[int, str | None]]) -> Shown:
    """Take from a batch what is waited for and is what it was; the first row of an id is the one that was embedded."""
    ranks, images = [], []
    for row_id, image in zip(rows[schema.ROW_ID].to_pylist(), rows[schema.IMAGE].to_pylist(), strict=True):
        rank, known = waiting.pop(row_id, (-1, None))
        if rank >= 0 and image is not None and known in (None, hashlib.sha256(image).hexdigest()):
            ranks.append(rank)
            images.append(image)
    return np.array(ranks, np.int64), images
