"""How good rankings are, query by query: recall, precision, reciprocal rank, nDCG.

In: the grades of what was found, rank by rank, and of all that is right. Out: a value for each query. Definitions are
those of trec_eval (Buckley; in ir-measures R@k, P@k, RR@k, nDCG@k), which tests compare with.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Gain = Literal["linear", "exponential"]
Values = NDArray[np.float64]


def recall(found: Values, relevant: NDArray[np.int64], k: int) -> Values:
    """Give the share of what is right that is among the first k; 0 where nothing is right.

    Args:
        found: (n, depth) grades of the rows found, best first; 0 where a row is wrong or there is none.
        relevant: (n,) how many rows are right.
    """
    hits = (found[:, :k] > 0).sum(axis=1)
    return np.asarray(np.divide(hits, relevant, out=np.zeros(len(found)), where=relevant > 0))


def precision(found: Values, k: int) -> Values:
    """Give the share of the first k that is right; places without a row count as wrong."""
    return np.asarray((found[:, :k] > 0).sum(axis=1) / k)


def reciprocal_rank(found: Values, k: int) -> Values:
    """Give 1 / the rank of the first that is right; 0 where none is among the first k."""
    hits = found[:, :k] > 0
    if not hits.shape[1]:
        return np.zeros(len(found))
    return np.where(hits.any(axis=1), 1.0 / (1 + hits.argmax(axis=1)), 0.0)


def ndcg(found: Values, judged: Sequence[Sequence[float]], k: int, gain: Gain = "linear") -> Values:
    """Give the discounted cumulative gain of the first k, over that of the best ranking there could be.

    Args:
        judged: for each query, the grades of all rows that are right, in any order.
        gain: linear: the grade (Järvelin, Kekäläinen 2002); exponential: 2^grade - 1 (Burges et al. 2005).
    """
    best = np.zeros((len(found), k))
    for query, grades in enumerate(judged):
        ordered = sorted(grades, reverse=True)[:k]
        best[query, : len(ordered)] = ordered
    ideal = _dcg(best, gain)
    return np.asarray(np.divide(_dcg(found[:, :k], gain), ideal, out=np.zeros(len(found)), where=ideal > 0))


def _dcg(grades: Values, gain: Gain) -> Values:
    gains = grades if gain == "linear" else np.exp2(grades) - 1
    return np.asarray((gains / np.log2(np.arange(2, grades.shape[1] + 2))).sum(axis=1))
