"""Which row of every group stays: the largest picture, the first row, or the one with the largest value of a column.

In: groups. Out: a flag for each of their rows; a group has one keeper, whatever is equal or unknown.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.analysis.headers import read_headers
from pipeline.analysis.source import Source, open_source
from pipeline.dedup.pieces import Arrays, Counts, digest, made, mapped
from pipeline.dedup.plan import Plan, span_jobs
from pipeline.dedup.shown import originals
from pipeline.indexing.exact import Selection
from pipeline.indexing.made import live_ids
from pipeline.indexing.vectors import Span
from pipeline.searching.columns import open_columns
from pipeline.store import Store
from pipeline.table import TableRecord, table_folder

PIECE_ROWS = 65_536  # of the table, whose grouped rows are read by one task
HEADER_BYTES = 64 << 20  # of pictures in memory, until their headers are read


def keepers(plan: Plan, ids: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose the keeper of each group: flags (n,).

    Args:
        ids: of the groups' rows (n,), ascending.
        group: the number of each one's group (n,).
    """
    if plan.config.keep == "first" or not len(ids):
        rank = np.zeros(len(ids), np.int64)
    elif plan.config.keep == "largest":
        rank = np.unique(-sizes(plan, ids), axis=0, return_inverse=True)[1].reshape(-1)
    else:
        name = plan.config.keep.removeprefix("column:")
        values = open_columns(plan.store, plan.index, plan.record).take(ids, [name])[name].combine_chunks()
        rank = pc.rank(values, "descending", null_placement="at_end", tiebreaker="min").to_numpy()
    return first_of_each(group, rank, ids)


def first_of_each(group: NDArray[np.int64], rank: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Flag the row of the lowest rank in each group (n,), of equals the one of the smallest id."""
    order = np.lexsort((ids, rank, group))
    flags = np.zeros(len(ids), np.bool_)
    flags[order[np.unique(group[order], return_index=True)[1]]] = True
    return flags


def sizes(plan: Plan, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give how many pixels and bytes rows' pictures have in the source: (n, 2), 0 where they cannot be read."""
    wanted = Selection.of(ids, plan.index.card.end).flags
    spans = [span for span in plan.spans if wanted[span.base : span.base + span.rows].any()]
    jobs = span_jobs(plan, "sizes", spans, PIECE_ROWS, digest(wanted))
    pieces = made(plan.store, jobs, measure, wanted, plan.record)
    with tempfile.TemporaryDirectory(prefix="rayclip-sizes-") as scratch:
        return np.concatenate([mapped(plan.store, piece, "sizes", Path(scratch)) for piece in pieces])


def measure(
    store_url: str, table: str, spans: list[Span], wanted: NDArray[np.bool_], record: TableRecord
) -> tuple[Arrays, Counts]:
    """Read the headers of some units' pictures: array ``sizes`` (m, 2) of the rows that are wanted, by id."""
    store = Store(store_url)
    source = open_source(store, table_folder(table), record, ())
    found = np.zeros((len(wanted), 2), np.int64)
    for places, images in _gathered(store, table, record, source, spans, wanted):
        for place, image, header in zip(places, images, read_headers(images, source.limits), strict=True):
            found[place] = header.width * header.height if header else 0, len(image)
    ids = live_ids(spans)
    return {"sizes": found[ids[wanted[ids]]]}, {}


def _gathered(
    store: Store, table: str, record: TableRecord, source: Source, spans: list[Span], wanted: NDArray[np.bool_]
) -> Iterator[tuple[list[int], list[bytes]]]:
    """Put ids and pictures together until they are HEADER_BYTES: for each lot a process is started."""
    places: list[int] = []
    waiting: list[bytes] = []
    for span in spans:
        flags = wanted[span.base : span.base + span.rows]
        for ranks, images in originals(store, table, record, source, span, flags):
            places += (span.base + ranks).tolist()
            waiting += images
            if sum(map(len, waiting)) > HEADER_BYTES:
                yield places, waiting
                places, waiting = [], []
    if waiting:
        yield places, waiting
