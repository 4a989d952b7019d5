"""Rows found, best first, in; some of them, in an order that serves people better, out. Pure; knows no index.

Scores are inner products of unit vectors, larger is better.
"""

import numpy as np
from numpy.typing import NDArray

NEAR = 0.96  # of unit vectors: what two shots of one scene have, and two pictures of a kind have not
Vectors = NDArray[np.float32]


def without_near(vectors: Vectors, most: int, threshold: float = NEAR) -> NDArray[np.int64]:
    """Leave out rows that are near to a better one that stays.

    Args:
        vectors: of the rows (n, d), norm 1, best first.
        most: rows to keep.

    Returns:
        The places of those that stay, ascending.
    """
    kept: list[int] = []
    gone = np.zeros(len(vectors), np.bool_)
    for place in range(len(vectors)):
        if gone[place]:
            continue
        kept.append(place)
        if len(kept) == most:
            break
        gone |= vectors @ vectors[place] >= threshold
    return np.array(kept, np.int64)


def diversified(scores: NDArray[np.float32], vectors: Vectors, most: int, diversity: float) -> NDArray[np.int64]:
    """Order rows by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Args:
        scores: of the rows (n,), best first.
        vectors: of the rows (n, d), norm 1.
        most: rows to keep.
        diversity: 0 leaves the order, 1 looks at nothing but how unlike the rows are to those before.

    Returns:
        The places of the rows, best first.
    """
    likeness = np.full(len(scores), -1.0, np.float32)  # to the nearest of those chosen
    left = np.ones(len(scores), np.bool_)
    chosen: list[int] = []
    for _ in range(min(most, len(scores))):
        worth = (1 - diversity) * scores - diversity * likeness
        place = int(np.argmax(np.where(left, worth, -np.inf)))
        chosen.append(place)
        left[place] = False
        likeness = np.maximum(likeness, vectors @ vectors[place])
    return np.array(chosen, np.int64)


def one_of_each_group(vectors: Vectors, threshold: float) -> NDArray[np.int64]:
    """Keep the best row of every group that is connected by pairs at least so near (as clip-retrieval does).

    Returns:
        The places of those that stay, ascending.
    """
    near = vectors @ vectors.T >= threshold
    group = np.full(len(vectors), -1)
    for place in range(len(vectors)):
        edge = np.flatnonzero(near[place]) if group[place] < 0 else np.empty(0, np.int64)
        group[place] = place if group[place] < 0 else group[place]
        while len(edge := edge[group[edge] < 0]):
            group[edge] = group[place]
            edge = np.flatnonzero(near[edge].any(axis=0))
    return np.flatnonzero(group == np.arange(len(vectors)))
