"""What rows look like, small: a grey thumbnail of every picture, and the hash of it.

Pictures are decoded through the sandbox, where a bad one harms nobody. Rows without a picture to be seen, and pictures
with nothing on them, have no hash. Pieces are runs of units.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.source import Source, open_source
from pipeline.dedup.alike import colours
from pipeline.dedup.hashes import GREY_PX, NO_HASH, hashes
from pipeline.dedup.pieces import Arrays, Counts, Piece, digest, made
from pipeline.dedup.plan import Plan, span_jobs
from pipeline.dedup.shown import Shown, originals, thumbnails
from pipeline.embedding.sandbox import Sandbox
from pipeline.indexing.exact import Selection
from pipeline.indexing.made import live_ids
from pipeline.indexing.vectors import Span
from pipeline.model import WHITE, Limits, PreprocessSpec
from pipeline.store import Store
from pipeline.table import TableRecord, table_folder

PIECE_ROWS = 16_384  # whose pictures are decoded by one task: half a minute of photographs
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def looks(plan: Plan, copies: NDArray[np.int64]) -> list[Piece]:
    """Look at the picture of every row; copies, which others stand for, apart."""
    compared = Selection.of(np.setdiff1d(plan.ids, copies), plan.index.card.end).flags
    jobs = span_jobs(plan, "looks", plan.spans, PIECE_ROWS, digest(compared))
    return made(plan.store, jobs, look, compared, plan.record)


def look(
    store_url: str, table: str, spans: list[Span], compared: NDArray[np.bool_], record: TableRecord
) -> tuple[Arrays, Counts]:
    """Decode the pictures of some units: ids (n,), grey (n, GREY_PX, GREY_PX), colour (n, 4) and hash (n,)."""
    store, ids = Store(store_url), live_ids(spans)
    grey, seen = np.zeros((len(ids), GREY_PX, GREY_PX), np.uint8), np.zeros(len(ids), np.bool_)
    colour = np.zeros((len(ids), 4), np.int16)
    source = open_source(store, table_folder(table), record, ())
    sandbox, first = Sandbox(_spec(record, source.limits)), 0
    try:
        for span in spans:
            for ranks, images in _shown(store, table, record, source, span, compared):
                pixels, outcomes = sandbox.pixels(images)
                grey[first + ranks] = np.einsum("nchw,c->nhw", pixels, LUMA).round().astype(np.uint8)
                colour[first + ranks] = colours(pixels)
                seen[first + ranks] = [outcome is None for outcome in outcomes]
            first += span.rows
    finally:
        sandbox.close()
    found = np.where(seen, hashes(grey), NO_HASH)
    counts = {
        "pictures_unseen": int((compared[ids] & ~seen).sum()),
        "pictures_blank": int((seen & (found == NO_HASH)).sum()),
    }
    return {"ids": ids, "grey": grey, "colour": colour, "hash": found}, counts


def _spec(record: TableRecord, limits: Limits) -> PreprocessSpec:
    """Say how pictures become small: squashed, so that one which was stretched is still like itself."""
    return replace(
        record.preprocess,
        height_px=GREY_PX,
        width_px=GREY_PX,
        resize_mode="squash",
        fill=WHITE,
        decode="scaled",
        thumbnail_px=None,
        limits=limits,
    )


def _shown(
    store: Store, table: str, record: TableRecord, source: Source, span: Span, compared: NDArray[np.bool_]
) -> Iterator[Shown]:
    wanted = compared[span.base : span.base + span.rows]
    if record.preprocess.thumbnail_px is not None:
        return thumbnails(store, table, span, wanted)
    return originals(store, table, record, source, span, wanted)
