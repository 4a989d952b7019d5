"""Vectors to two coordinates by their principal components: one pass to find them, and a product for every batch.

In: batches of vectors (n, d). Out: a `Projection`. Takes d x d numbers of memory, however many vectors there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Projection:
    """The plane that vectors differ most in."""

    mean: NDArray[np.float64]  # (d,)
    axes: NDArray[np.float64]  # (d, 2), of norm 1

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the coordinates (n, 2) of vectors (n, d)."""
        return np.asarray((vectors - self.mean) @ self.axes, np.float32)


def principal_plane(batches: Iterable[NDArray[np.float32]], d: int) -> Projection:
    """Find the plane of the two largest variances; of no vectors, and where d is 1, what is missing is 0.

    Signs, which are free, are chosen so that the largest coordinate of an axis is positive.
    """
    count, total, products = 0, np.zeros(d), np.zeros((d, d))
    for vectors in batches:
        exact = vectors.astype(np.float64)
        count += len(exact)
        total += exact.sum(axis=0)
        products += exact.T @ exact
    mean = total / max(count, 1)
    _, axes = np.linalg.eigh(products / max(count, 1) - np.outer(mean, mean))  # variances ascend
    plane = np.zeros((d, 2))
    plane[:, : min(d, 2)] = axes[:, ::-1][:, :2]
    largest = plane[np.abs(plane).argmax(axis=0), [0, 1]]
    return Projection(mean, plane * np.where(largest < 0, -1.0, 1.0))
