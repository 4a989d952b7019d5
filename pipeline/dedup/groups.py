"""Edges in, groups out: connected components, cut where they are chains.

A is like B, B like C, and so on to Z, which is like A in nothing: so every group has a middle, and every member lies
within a bound of it along edges. A step's length is the angle between the two, as a share of the angle at its stage's
threshold; angles on a sphere keep the triangle's inequality, so that a member is no farther from the middle than its
way there. Pure; memory grows with the edges, not with the square of a group.
"""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from pipeline.dedup.recall import components

NO_GROUP = -1
LEAST_STEP = 1e-3  # of equal pictures, so that of equal ways the one of fewer steps is shorter


@dataclass(frozen=True)
class Edges:
    """What joins rows: ids a < b (m,), and the length of each step (m,), 1 at the threshold."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    length: NDArray[np.float64]


def lengths(similarity: NDArray[np.float32], threshold: float) -> NDArray[np.float64]:
    """Measure steps by the similarity of their ends; all are short where only equal rows are joined, at 1."""
    angle = np.arccos(np.clip(similarity, -1.0, 1.0).astype(np.float64))
    return np.asarray(np.clip(angle / max(np.arccos(threshold), LEAST_STEP), LEAST_STEP, 1.0))


def groups(edges: Edges, max_steps: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put rows into groups: ids (n,), ascending, and the number of each one's group (n,); rows alone are not named.

    A group is numbered by its smallest id's place among all groups.
    """
    ids = np.unique(np.concatenate([edges.a, edges.b]))
    a, b = np.searchsorted(ids, edges.a), np.searchsorted(ids, edges.b)
    label = components(a, b, len(ids))
    sizes = np.bincount(label, minlength=1)
    whole = label.astype(np.int64)
    deep = np.flatnonzero(sizes[label] > 2)  # two are one step apart
    if len(deep):
        whole[deep] = len(sizes) + _cut(a, b, edges.length, len(ids), deep, max_steps)[deep]
    return _named(ids, whole)


def _cut(
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    length: NDArray[np.float64],
    n: int,
    deep: NDArray[np.int64],
    max_steps: float,
) -> NDArray[np.int64]:
    """Choose middles, the best joined first, until every row is near one, and give each row its nearest: (n,)."""
    ends = (np.concatenate([a, b]), np.concatenate([b, a]))
    graph = csr_array((np.tile(length, 2), ends), shape=(n, n))
    graph.sort_indices()
    nearness = np.bincount(ends[0], np.tile(1.5 - length, 2), minlength=n)  # many edges, and short ones
    order = deep[np.lexsort((deep, -nearness[deep].round(9)))]
    starts, targets, steps = (part.tolist() for part in (graph.indptr, graph.indices, graph.data))
    claimed, middles = bytearray(n), []
    for start in order.tolist():
        if not claimed[start]:
            middles.append(start)
            _claim(start, starts, targets, steps, claimed, max_steps)
    # A row that an early middle claimed may lie nearer to a later one, whose bunch it belongs to.
    nearest = dijkstra(graph, indices=middles, limit=max_steps, min_only=True, return_predecessors=True)[2]
    return np.asarray(nearest, np.int64)


def _claim(
    start: int, starts: list[int], targets: list[int], steps: list[float], claimed: bytearray, max_steps: float
) -> None:
    """Walk from a middle by the shortest way to whatever is free and within the bound (Dijkstra 1959)."""
    heap = [(0.0, start)]
    while heap:
        far, here = heapq.heappop(heap)
        if claimed[here]:
            continue
        claimed[here] = 1
        for place in range(starts[here], starts[here + 1]):
            there, way = targets[place], far + steps[place]
            if not claimed[there] and way <= max_steps:
                heapq.heappush(heap, (way, there))


def _named(ids: NDArray[np.int64], label: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Leave out rows alone, and number groups from 0 in the order of their smallest ids."""
    _, first, number, sizes = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
    together = sizes[number] > 1
    order = np.full(len(first), NO_GROUP)
    kept = np.flatnonzero(sizes > 1)
    order[kept[np.argsort(first[kept])]] = np.arange(len(kept))
    return ids[together], order[number[together]]
