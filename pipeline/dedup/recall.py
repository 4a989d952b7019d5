"""How many pairs of vectors were found of those that there are: an exact search for rows that are drawn by seed.

A pair counts as found where the two are joined, directly or through others: that is what groups are made of.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.dedup.near import Place
from pipeline.dedup.pairs import Pairs, joined, pairs
from pipeline.dedup.pieces import Arrays, Counts, digest, made, pairs_of, range_jobs, ranges
from pipeline.dedup.plan import Plan, opened
from pipeline.indexing.exact import Selection

PIECE_ROWS = 1 << 18  # compared with the rows drawn, by one task
ASKED_AT_ONCE = 4096  # vectors: their scores against a thousand rows take 16 MiB
MOST_PAIRS = 1000  # of a row drawn with one part of the table: more say nothing more


@dataclass(frozen=True)
class Recall:
    """What an exact search found for some rows."""

    rows: int  # that were drawn
    pairs: int  # of these with any others, at the threshold
    found: int  # of these pairs

    @property
    def share(self) -> float | None:
        """The share that was found; None where there are no pairs."""
        return self.found / self.pairs if self.pairs else None


def measure(plan: Plan, found: Pairs) -> Recall:
    """Search exactly for the pairs of rows drawn, and look which of them are joined by those found.

    Args:
        found: pairs of equal bytes, and of vectors at the threshold.
    """
    rng = np.random.default_rng(plan.config.seed)
    drawn = np.sort(rng.choice(plan.ids, min(len(plan.ids), plan.config.recall_rows), replace=False))
    live = Selection.of(plan.ids, plan.index.card.end).flags
    bounds = ranges(plan.index.card.end, PIECE_ROWS)
    jobs = range_jobs(f"{plan.work}/truth", bounds, (plan.place, plan.config.threshold), digest(drawn, live))
    truth = joined(pairs_of(plan.store, made(plan.store, jobs, search, drawn, live)))
    label = components(found.a, found.b, plan.index.card.end)
    return Recall(len(drawn), len(truth), int((label[truth.a] == label[truth.b]).sum()))


def search(
    store_url: str,
    low: int,
    high: int,
    place: Place,
    threshold: float,
    drawn: NDArray[np.int64],
    live: NDArray[np.bool_],
) -> tuple[Arrays, Counts]:
    """Compare rows drawn with a run of ids: pairs."""
    exact = opened(*place).index.exact
    xq = exact.take(drawn)
    xq /= np.linalg.norm(xq, axis=1, keepdims=True)
    ids = low + np.flatnonzero(live[low:high])
    found = []
    for first in range(0, len(ids), ASKED_AT_ONCE):
        some = ids[first : first + ASKED_AT_ONCE]
        xb = exact.take(some)
        scores = xq @ (xb / np.linalg.norm(xb, axis=1, keepdims=True)).T
        which, where = np.nonzero(scores >= threshold)
        few = _first_of_each(which)
        found.append(pairs(drawn[which[few]], some[where[few]], scores[which, where][few]))
    return joined(found).arrays, {}


def components(a: NDArray[np.int64], b: NDArray[np.int64], end: int) -> NDArray[np.int32]:
    """Number the connected components that pairs make of the ids below ``end``: (end,)."""
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(end, end))
    return np.asarray(connected_components(graph, directed=False)[1], np.int32)


def _first_of_each(which: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the first MOST_PAIRS places of each value of an ascending array."""
    rank = np.arange(len(which)) - np.searchsorted(which, which)
    return np.flatnonzero(rank < MOST_PAIRS)
