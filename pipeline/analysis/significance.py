"""How sure a mean is, and whether two are different: bootstrap intervals and a rank test, all seeded.

In: a value for each query. Out: intervals and p values. Queries are what is drawn from: systems are compared on the
same ones, pair by pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats
from numpy.typing import NDArray

RESAMPLES = 2000  # of which 50 lie beyond either end of the interval
LEVEL = 0.95
AT_ONCE = 1 << 22  # values drawn at a time: 32 MiB


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies in 95 of 100 draws of as many queries; without bounds for a single query."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """How one system differs from another on the same queries.

    Attributes:
        absolute: mean of the differences, with the interval's bounds.
        relative: that, over the other's mean; None where that is 0.
        p_bootstrap: two-sided, of no difference in the mean; never 0, since more draws might have shown one.
        p_rank: of Wilcoxon's signed-rank test.
        p_bootstrap_holm, p_rank_holm: the same, corrected for how many systems the other was compared with.
    """

    absolute: float
    low: float | None
    high: float | None
    relative: float | None
    p_bootstrap: float | None
    p_rank: float
    p_bootstrap_holm: float | None
    p_rank_holm: float


def interval(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """Give the mean of n values with its percentile bootstrap interval (Efron 1979)."""
    means = _means(values, seed)
    low, high = _bounds(means)
    return Interval(float(values.mean()), low, high)


def difference(ours: NDArray[np.float64], theirs: NDArray[np.float64], seed: int = 0) -> Difference:
    """Compare two systems on the same n queries, in the same order."""
    change = ours - theirs
    means = _means(change, seed)
    low, high = _bounds(means)
    baseline = float(theirs.mean())
    p_bootstrap = None if means is None else _p_value(means)
    # It knows no answer where nothing differs.
    p_rank = float(scipy.stats.wilcoxon(change).pvalue) if change.any() else 1.0
    return Difference(
        absolute=float(change.mean()),
        low=low,
        high=high,
        relative=float(change.mean()) / baseline if baseline else None,
        p_bootstrap=p_bootstrap,
        p_rank=p_rank,
        p_bootstrap_holm=p_bootstrap,
        p_rank_holm=p_rank,
    )


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Correct the p values of several systems that were compared with the same other one."""
    by_rank = holm([each.p_rank for each in differences])
    given = [each.p_bootstrap for each in differences if each.p_bootstrap is not None]
    # None of a single query, which then is that of all systems.
    by_bootstrap: list[float | None] = [*holm(given)] if given else [None] * len(differences)
    return [
        replace(each, p_rank_holm=rank, p_bootstrap_holm=bootstrap)
        for each, rank, bootstrap in zip(differences, by_rank, by_bootstrap, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for how many there are, so that any of them is wrong no more often than one would be (1979)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(1.0, stepped)
    return [float(value) for value in found]


def _p_value(means: NDArray[np.float64]) -> float:
    """Give the share of draws on the far side of 0, twice, counting one more than there are (Davison, Hinkley 1997)."""
    fewer = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    return float(min(1.0, 2 * (fewer + 1) / (len(means) + 1)))


def _means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64] | None:
    """Draw as many values again, with replacement, RESAMPLES times: their means; None for a single one."""
    if len(values) < 2:
        return None
    rng, means = np.random.default_rng(seed), np.empty(RESAMPLES)
    step = max(1, AT_ONCE // len(values))
    for first in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - first)
        means[first : first + count] = values[rng.integers(len(values), size=(count, len(values)))].mean(axis=1)
    return means


def _bounds(means: NDArray[np.float64] | None) -> tuple[float | None, float | None]:
    if means is None:
        return None, None
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
