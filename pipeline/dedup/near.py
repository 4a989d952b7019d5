"""The join of vectors: an index's lists with themselves, and with those rows of other lists that lie at their edge.

Rows that are alike mostly lie in one list, or in lists side by side. So first every row says which other lists it lies
nearly as near to as to its own; then every list's rows are compared with each other and with its visitors. A pair is
missed only if neither row visits the other's list; how many are is measured (recall.py). It costs n rows times a few
lists, never n x n, and no row is assigned to a list anew. Without lists, blocks of rows are compared with blocks.
"""

import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dedup.contents import equal_rows
from pipeline.dedup.pairs import NO_PAIRS, Pairs, joined, pairs, thinned
from pipeline.dedup.pieces import Arrays, Counts, Piece, digest, made, mapped, pairs_of, range_jobs, ranges
from pipeline.dedup.plan import Plan, opened
from pipeline.indexing.exact import Exact, Selection
from pipeline.indexing.index import Index, inner_ivf, transformed
from pipeline.indexing.lists import ids_of, lengths
from pipeline.store import Store

PIECE_ROWS = 50_000  # whose lists make a piece: some seconds of work
BLOCK_ROWS = 8192  # compared with each other, where there are no lists
TILE = 1 << 22  # scores at a time: 16 MiB, and if all of them are pairs, 300 MiB for a moment
# Lists near a row's own, by their centroids, among which it looks for lists to visit. Of 1,640 planted pairs among
# 10^6 x 512 in 4,000 lists, 0.884 lie in one list; with a margin of 0.25, 64, 128 and 256 lists make it 0.988, 0.990
# and 0.993, as many as with a margin of 0.5 (2026-11-25).
NEAR_LISTS = 512
MOST_VISITS = 16  # lists, of one row; 2.3 in the mean, there
# A list is visited if its centroid scores so much less than the own list's, in distances of a pair at the threshold.
MARGIN = 0.25

Place = tuple[str, str, str]  # what `opened` takes


def near_vectors(plan: Plan, copies: NDArray[np.int64]) -> tuple[Pairs, int]:
    """Find pairs of rows whose vectors score ``plan.floor`` or more; say how many were left out of crowded rows.

    Args:
        copies: ids of rows that others stand for.
    """
    compared = Selection.of(np.setdiff1d(plan.ids, copies), plan.index.card.end)
    arguments, asked = (plan.place, plan.floor), digest(plan.floor, compared.flags)
    if plan.index.index.nlist:
        bounds = _list_ranges(plan.index.index)
        visits = made(plan.store, range_jobs(f"{plan.work}/visits", bounds, arguments, asked), visiting, compared.flags)
        jobs = range_jobs(f"{plan.work}/near", bounds, arguments, digest(asked, [one.sha256 for one in visits]))
        pieces = made(plan.store, jobs, join_lists, compared.flags, visits)
    else:
        bounds = ranges(compared.count, BLOCK_ROWS)
        jobs = range_jobs(f"{plan.work}/near", bounds, arguments, asked)
        pieces = made(plan.store, jobs, join_blocks, compared.flags)
    return joined(pairs_of(plan.store, pieces)), sum(piece.counts["left_out"] for piece in pieces)


def visiting(
    store_url: str, low: int, high: int, place: Place, floor: float, compared: NDArray[np.bool_]
) -> tuple[Arrays, Counts]:
    """Say which rows of some lists visit which others: arrays ``to`` and ``row``, ordered by both."""
    index = opened(*place).index
    middles = inner_ivf(index.whole).quantizer.reconstruct_n(0, index.nlist)
    scores = middles[low:high] @ middles.T
    count = min(NEAR_LISTS, len(middles))
    near = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    margin = MARGIN * np.sqrt(2 - 2 * floor)
    to, row = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for own, others in zip(range(low, high), near, strict=True):
        ids = members(index, own, compared)
        lists = others[others != own]
        x = transformed(index.whole, _unit(index.exact, ids))
        which, where = _visited(x @ middles[lists].T, x @ middles[own] - margin)
        row.append(ids[which])
        to.append(lists[where])
    rows, lists = np.concatenate(row), np.concatenate(to)
    order = np.lexsort((rows, lists))
    return {"to": lists[order], "row": rows[order]}, {}


def join_lists(
    store_url: str, low: int, high: int, place: Place, floor: float, compared: NDArray[np.bool_], visits: list[Piece]
) -> tuple[Arrays, Counts]:
    """Compare the rows of some lists with each other and with their visitors: pairs."""
    index = opened(*place).index
    with tempfile.TemporaryDirectory(prefix="rayclip-visits-") as scratch:
        to, row = _visitors(Store(store_url), visits, low, high, Path(scratch))
    found, left_out = [], 0
    for own in range(low, high):
        ids = members(index, own, compared)
        guests = row[slice(*np.searchsorted(to, [own, own + 1]))]
        some, fewer = _compared(index.exact, ids, guests, floor)
        found.append(some)
        left_out += fewer
    return joined(found).arrays, {"left_out": left_out}


def join_blocks(
    store_url: str, low: int, high: int, place: Place, floor: float, compared: NDArray[np.bool_]
) -> tuple[Arrays, Counts]:
    """Compare a block of rows with itself and with all behind it: pairs."""
    index, ids = opened(*place).index, np.flatnonzero(compared)
    own = ids[low:high]
    some, left_out = _compared(index.exact, own, ids[:0], floor)
    found, x = [some], _unit(index.exact, own)
    for first in range(high, len(ids), high - low):
        other = ids[first : first + high - low]
        some, fewer = _alike(x, own, _unit(index.exact, other), other, floor)
        found.append(some)
        left_out += fewer
    return joined(found).arrays, {"left_out": left_out}


def members(index: Index, number: int, compared: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Give the ids of one list's rows, of base and deltas, ascending; without those that are not compared."""
    every = (inner_ivf(index.whole), *index.deltas)
    ids = np.sort(np.concatenate([ids_of(ivf.invlists, number) for ivf in every]))
    return np.asarray(ids[compared[ids]])


def _list_ranges(index: Index) -> list[tuple[int, int]]:
    """Cut the lists into ranges of about PIECE_ROWS rows."""
    sizes = sum(lengths(ivf.invlists) for ivf in (inner_ivf(index.whole), *index.deltas))
    part = (np.cumsum(sizes) - sizes) // PIECE_ROWS
    bounds = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), index.nlist]
    return list(pairwise(bounds))


def _visited(scores: NDArray[np.float32], least: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose, of each row's scores (n, lists), the best MOST_VISITS that reach its least one: places (m,) and (m,)."""
    if scores.shape[1] > MOST_VISITS:
        limit = -np.partition(-scores, MOST_VISITS - 1, axis=1)[:, MOST_VISITS - 1]
        least = np.maximum(least, limit)
    which, where = np.nonzero(scores >= least[:, None])
    return which, where


def _visitors(
    store: Store, visits: list[Piece], low: int, high: int, scratch: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read who visits some lists, ordered by list and id."""
    tos, rows = [], []
    for piece in visits:
        to, row = (mapped(store, piece, name, scratch) for name in ("to", "row"))
        here = slice(*np.searchsorted(to, [low, high]))
        tos.append(np.array(to[here]))
        rows.append(np.array(row[here]))
    lists, ids = np.concatenate(tos), np.concatenate(rows)
    order = np.lexsort((ids, lists))
    return lists[order], ids[order]


def _compared(exact: Exact, ids: NDArray[np.int64], guests: NDArray[np.int64], floor: float) -> tuple[Pairs, int]:
    """Compare rows with each other and with guests. Of rows with one vector the first stands for the others."""
    if not len(ids):
        return NO_PAIRS, 0
    x = _unit(exact, ids)
    same = equal_rows(ids, _fingerprints(x))
    stands = ~np.isin(ids, same.b)
    x, ids = x[stands], ids[stands]
    found, left_out = _alike(x, ids, x, ids, floor, is_self=True)
    if len(guests):
        some, fewer = _alike(_unit(exact, guests), guests, x, ids, floor)
        found, left_out = joined([found, some]), left_out + fewer
    return joined([same, found]), left_out


def _alike(
    x: NDArray[np.float32],
    ids: NDArray[np.int64],
    y: NDArray[np.float32],
    others: NDArray[np.int64],
    floor: float,
    *,
    is_self: bool = False,
) -> tuple[Pairs, int]:
    """Compare rows (n, d) with others (m, d), a tile of scores at a time, thinned out where rows are crowded."""
    found, left_out, step = [], 0, max(1, TILE // max(1, len(y)))
    for first in range(0, len(x), step):
        start = first if is_self else 0
        scores = x[first : first + step] @ y[start:].T
        which, where = np.nonzero(scores >= floor)
        if is_self:
            which, where = (one[where > which] for one in (which, where))
        some, fewer = thinned(pairs(ids[first + which], others[start + where], scores[which, where]))
        found.append(some)
        left_out += fewer
    return joined(found), left_out


def _fingerprints(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Tell vectors (n, d) apart by 64 bits (n, 1): sorting by all coordinates would take d times as long."""
    odd = np.random.default_rng(0).integers(0, 1 << 63, x.shape[1], np.uint64) * 2 + 1
    return np.asarray((np.ascontiguousarray(x).view(np.uint32).astype(np.uint64) @ odd)[:, None])


def _unit(exact: Exact, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read vectors (n, d), of norm 1 again: float16 took a little of it."""
    x = exact.take(ids)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
