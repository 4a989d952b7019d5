"""Candidates, best first, in; the places of those that come up, out: without duplicates, unlike each other.

In: a snapshot, scores and vector ids, and what a request asks of them. Knows nothing of how they were found.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import CONTENT_HASH
from pipeline.searching.ranking import diversified, without_near
from pipeline.serving.requests import Options
from pipeline.serving.snapshot import Snapshot


def picked(
    snapshot: Snapshot, scores: NDArray[np.float32], numbers: NDArray[np.int64], request: Options, wanted: int
) -> NDArray[np.int64]:
    """Choose among candidates, best first: without duplicates, then unlike each other."""
    is_exact = request.dedup == "exact"
    places = _first_of_each_content(snapshot, numbers) if is_exact else np.arange(len(numbers))
    if request.dedup == "near" or request.diversity > 0:
        vectors = _unit(snapshot.index.index.exact.take(numbers))
        if request.dedup == "near":
            places = without_near(vectors, len(vectors) if request.diversity > 0 else wanted)
        if request.diversity > 0:
            places = places[diversified(scores[places], vectors[places], wanted, request.diversity)]
    return places


def _first_of_each_content(snapshot: Snapshot, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keep the best row of every content; of tables that know none, every row."""
    contents = [row[CONTENT_HASH] for row in snapshot.columns.rows(numbers, [CONTENT_HASH])]
    seen: set[object] = set()
    kept = []
    for place, content in enumerate(contents):
        if content is None or content not in seen:
            kept.append(place)
            seen.add(content)
    return np.array(kept, np.int64)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give vectors norm 1 again, which float16 took a little of."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny))
