"""The join of vectors: an index's lists with themselves, and with those rows of other lists that lie at their edge.

Rows that are alike mostly lie in one list, or in lists side by side. So first every row says which other lists it lies
nearly as near to as to its own; then every list's rows are compared with each other and with its visitors. A pair is
missed only if neither row visits the other's list; how many are is measured (recall.py). It costs n rows times the
centroids and a few lists, never n x n. Without lists, blocks of rows are compared with blocks.
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
from pipeline.indexing.exact import NO_SCORE, Exact, Selection
from pipeline.indexing.index import Index, inner_ivf, transformed
from pipeline.indexing.lists import ids_of, lengths
from pipeline.store import Store

PIECE_ROWS = 50_000  # whose lists make a piece: some seconds of work
BLOCK_ROWS = 8192  # compared with each other, where there are no lists
TILE_ROWS = 2048  # compared with as many others at a time: 16 MiB of scores
CROWD = 1024  # rows near another, before it, past which it is compared no further
SCORES_AT_ONCE = 1 << 24  # of rows against centroids: 64 MiB
# Every row is compared with all centroids, which costs what filling the index did: 55 s of one core at 10^6 x 512.
# Among the 64 lists whose centroids are nearest to the own one's 0.985 of planted pairs were found, among all 0.9999:
# where lists are of many sizes, one row in ten visits a list farther away (2026-11-25).
MOST_VISITS = 16  # lists, of one row
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
    margin, step = MARGIN * np.sqrt(2 - 2 * floor), max(1, SCORES_AT_ONCE // index.nlist)
    to, row = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for own in range(low, high):
        ids = members(index, own, compared)
        for first in range(0, len(ids), step):
            some = ids[first : first + step]
            scores = transformed(index.whole, _unit(index.exact, some)) @ middles.T
            least = scores[:, own] - margin
            scores[:, own] = NO_SCORE
            which, where = _visited(scores, least)
            row.append(some[which])
            to.append(where)
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
    crowded = np.flatnonzero((scores >= least[:, None]).sum(axis=1) > MOST_VISITS)
    if len(crowded):
        limit = -np.partition(-scores[crowded], MOST_VISITS - 1, axis=1)[:, MOST_VISITS - 1]
        least[crowded] = np.maximum(least[crowded], limit)
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
    x, ids, same = _distinct(exact, ids)
    found, left_out = _alike(x, ids, x, ids, floor, is_self=True)
    if len(guests):
        some, fewer = _alike(_unit(exact, guests), guests, x, ids, floor)
        found, left_out = joined([found, some]), left_out + fewer
    return joined([same, found]), left_out


def _distinct(exact: Exact, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64], Pairs]:
    """Read rows, of those with one vector only the first: vectors, ids, and pairs of the others with it.

    However many rows are equal, no more of them are in memory than a tile has.
    """
    kept, marks = [], np.empty(0, np.uint64)
    for first in range(0, len(ids), TILE_ROWS):
        x = _unit(exact, ids[first : first + TILE_ROWS])
        mine = _fingerprints(x)
        is_new = np.zeros(len(mine), np.bool_)
        is_new[np.unique(mine, return_index=True)[1]] = True
        kept.append(x[is_new & ~np.isin(mine, marks)])
        marks = np.concatenate([marks, mine])
    same = equal_rows(ids, marks[:, None])
    return np.concatenate(kept), ids[~np.isin(ids, same.b)], same


def _alike(
    x: NDArray[np.float32],
    ids: NDArray[np.int64],
    y: NDArray[np.float32],
    others: NDArray[np.int64],
    floor: float,
    *,
    is_self: bool = False,
) -> tuple[Pairs, int]:
    """Compare others (m, d) with rows (n, d), a tile of scores at a time, thinned out where rows are crowded."""
    parts = [
        _first_alike(
            x[: first + TILE_ROWS] if is_self else x,
            ids,
            y[first : first + TILE_ROWS],
            others[first : first + TILE_ROWS],
            floor,
            first if is_self else len(x),
        )
        for first in range(0, len(others), TILE_ROWS)
    ]
    return joined(some for some, _ in parts), sum(left_out for _, left_out in parts)


def _first_alike(
    x: NDArray[np.float32],
    ids: NDArray[np.int64],
    y: NDArray[np.float32],
    others: NDArray[np.int64],
    floor: float,
    place: int,
) -> tuple[Pairs, int]:
    """Pair each of some others with the rows that score enough, until it has met a crowd; keep the best of these.

    So of n rows that are all alike each is compared with the first ones only, and all hang on these: thinned after
    each tile, but compared with all, 8,000 took 78 s and kept 3.9 million pairs (2026-11-25).

    Args:
        place: where in ``x`` the others begin themselves: each meets the rows before it.
    """
    found, left, here = [], np.full(len(others), CROWD), np.arange(len(others))
    for first in range(0, len(x), TILE_ROWS):
        scores = x[first : first + TILE_ROWS] @ y[here].T
        near = scores >= floor
        if first + len(scores) > place:
            near &= np.arange(first, first + len(scores))[:, None] < (place + here)[None]
        if (near.sum(axis=0) > left[here]).any():
            near &= np.cumsum(near, axis=0, dtype=np.int32) <= left[here]
        which, where = np.nonzero(near)
        found.append(pairs(ids[first + which], others[here[where]], scores[which, where]))
        left[here] -= near.sum(axis=0)
        here = here[left[here] > 0]
        if not len(here):
            break
    return thinned(joined(found))


def _fingerprints(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Tell vectors (n, d) apart by 64 bits (n,): sorting by all coordinates would take d times as long."""
    odd = np.random.default_rng(0).integers(0, 1 << 63, x.shape[1], np.uint64) * 2 + 1
    return np.asarray(np.ascontiguousarray(x).view(np.uint32).astype(np.uint64) @ odd)


def _unit(exact: Exact, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read vectors (n, d), of norm 1 again: float16 took a little of it."""
    x = exact.take(ids)
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
