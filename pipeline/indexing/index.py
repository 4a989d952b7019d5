"""The merged, searchable whole: a FAISS index, the vectors behind its codes, and one way to ask it.

Thread-safe: parameters travel with each call, nothing is set on the shared index. Scores are inner products of unit
vectors, larger is better.
"""

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

NO_ID = -1


@dataclass(frozen=True)
class Index:
    """A FAISS index and, beside inverted lists, the vectors (n, d) in float16.

    With ``rerank``, that many times k candidates are ordered again by those vectors: for codes that lose something.
    """

    faiss: faiss.Index
    exact: NDArray[np.float16] | None
    nprobe: int | None
    rerank: int | None

    def search(
        self, xq: NDArray[np.float32], k: int, nprobe: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k best rows of each query: D and I of shape (n, k), best first; id -1 where there are fewer."""
        if xq.ndim != 2 or xq.shape[1] != self.faiss.d or xq.dtype != np.float32:
            raise ValueError(f"queries: wanted float32 (n, {self.faiss.d}), got {xq.dtype} {xq.shape}")
        xq = np.ascontiguousarray(xq)
        params = self.parameters(nprobe or self.nprobe)
        if self.exact is None or self.rerank is None:
            scores, ids = self.faiss.search(xq, k, params=params)
            return scores, ids
        _, ids = self.faiss.search(xq, min(k * self.rerank, self.faiss.ntotal), params=params)
        return _ranked_again(xq, ids, self.exact, k)

    def vector(self, number: int) -> NDArray[np.float32]:
        """Give the vector (d,) of an id; beside inverted lists as float16 kept it, normalised again."""
        if self.exact is None:
            return np.asarray(self.faiss.reconstruct(number), np.float32)
        vector = self.exact[number].astype(np.float32)
        return np.asarray(vector / np.linalg.norm(vector), np.float32)

    def parameters(self, nprobe: int | None, selector: faiss.IDSelector | None = None) -> faiss.SearchParameters:
        """Make the parameters of one call: how many lists, and which ids may come up; for this kind of index."""
        chosen = {"sel": selector} if selector is not None else {}
        if nprobe is None:
            return faiss.SearchParameters(**chosen)
        inner = faiss.SearchParametersIVF(nprobe=nprobe, **chosen)
        if isinstance(faiss.downcast_index(self.faiss), faiss.IndexPreTransform):
            return faiss.SearchParametersPreTransform(index_params=inner)
        return inner


def _ranked_again(
    xq: NDArray[np.float32], ids: NDArray[np.int64], exact: NDArray[np.float16], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Order candidates (n, c) by their exact scores and keep the k best."""
    scores = np.empty(ids.shape, np.float32)
    for i, (query, candidates) in enumerate(zip(xq, ids, strict=True)):  # c vectors of one query at a time
        scores[i] = exact[np.maximum(candidates, 0)].astype(np.float32) @ query
    scores[ids == NO_ID] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
    missing = k - order.shape[1]
    if missing <= 0:
        return best
    padding = ((0, 0), (0, missing))
    return (
        np.pad(best[0], padding, constant_values=-np.inf),
        np.pad(best[1], padding, constant_values=NO_ID),
    )
