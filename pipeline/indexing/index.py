"""The merged, searchable whole: inverted lists, the vectors behind their codes, and one way to ask them.

Thread-safe: parameters travel with each call, nothing is set on what is shared. Scores are inner products of unit
vectors, larger is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.indexing.exact import NO_ID, NO_SCORE, Exact, Found, Selection, best

TUNED_K = 10  # that nprobe is tuned at
# Power of k with which lists and margin grow from there: at 10^6 x 512, 4,000 lists, recall stayed at 0.95 or more with
# 2 times as many lists for 100 rows, 4 for 1,000 and 5 for 3,000 (jobs/BENCHMARKS.md).
GROWTH = 0.3
HELD = 4  # times k rows that the lists searched hold at least: where k is much of the table, they are most of its lists
MOST_FOUND = 10_000  # rows that one query may ask for
SEARCHED_EXACTLY = 4096  # selected rows at most, that are compared one by one: about what a search of lists looks at
LISTS_ORDERED = 1 << 24  # in one go, of all queries: 64 MiB of scores
WATCHED = 4  # times k candidates that have settled where twice as many lists change ...
SETTLED = 50  # ... no more than a fiftieth of them
LEAST_BEAM = 64  # of an HNSW coarse quantiser, whose own default of 16 misses lists


@dataclass(frozen=True)
class Index:
    """What a version is made of; all of it may be memory-mapped.

    The base's lists lie in ``whole``, those of rows that were added since in ``deltas``; they are of one training, so a
    query looks its lists up once. Without any, ``exact`` is the index. With ``rerank``, that many times k candidates
    are ordered again by their vectors: for codes that lose something. ``live`` leaves out rows that were deleted.

    Of the ``nprobe`` lists nearest to a query, those are searched whose centroid scores at most ``margin`` less than
    the nearest one's: a picture lies near few centroids, a text at some distance from many (SPANN's pruning, Chen et
    al. 2021, arXiv 2111.08566; here in inner products of unit vectors).
    """

    whole: faiss.Index  # as FAISS wrote it: what is done to queries first, the coarse quantiser, the base's lists
    exact: Exact
    nprobe: int | None = None
    margin: float | None = None
    rerank: int | None = None
    deltas: Sequence[faiss.IndexIVF] = ()
    live: Selection | None = None

    @property
    def ntotal(self) -> int:
        """How many rows can be found."""
        return len(self.exact) if self.live is None else self.live.count

    @property
    def nlist(self) -> int:
        """How many inverted lists there are; 0 without any."""
        ivf = inner_ivf(self.whole)
        return 0 if ivf is None else int(ivf.nlist)

    def search(
        self,
        xq: NDArray[np.float32],
        k: int,
        *,
        nprobe: int | None = None,
        margin: float | None = None,
        within: Selection | None = None,
        exact: bool = False,
    ) -> Found:
        """Find the k best rows of each query: D and I of shape (n, k), best first; id -1 where there are fewer.

        Args:
            xq: queries (n, d) of norm 1.
            k: 10,000 at most.
            nprobe: lists to search; None: what was tuned, and more for a k above 10 or a selection.
            margin: with an nprobe, how much less than the nearest a list's centroid may score; None: anything.
            within: the ids that may come up.
            exact: compare with every vector.

        Raises:
            ValueError: queries of another type or width, or a k that is out of bounds.
        """
        if xq.ndim != 2 or xq.shape[1] != self.whole.d or xq.dtype != np.float32:
            raise ValueError(f"queries: wanted float32 (n, {self.whole.d}), got {xq.dtype} {xq.shape}")
        if not 1 <= k <= MOST_FOUND:
            raise ValueError(f"k: wanted 1 to {MOST_FOUND}, got {k}")
        xq = np.ascontiguousarray(xq)
        allowed = self.live if within is None else within & self.live
        is_small = within is not None and allowed is not None and allowed.count <= SEARCHED_EXACTLY
        if exact or is_small or not self.nlist:
            return self.exact.search(xq, k, allowed)
        lists = min(nprobe or self.lists_for(k, None if within is None else allowed), self.nlist)
        wanted = min(k * (self.rerank or 1), len(self.exact))
        wanted, x = max(wanted, k), transformed(self.whole, xq)
        if within is None or nprobe is not None:
            margin = margin if nprobe is not None else self.margin_for(k)
            scores, ids = self._probe_near(x, wanted, lists, margin, allowed)
        else:
            step, wanted = max(1, LISTS_ORDERED // self.nlist), max(wanted, WATCHED * k)
            parts = [
                self._until_settled(x[first : first + step], k, wanted, lists, allowed)
                for first in range(0, len(x), step)
            ]
            scores, ids = (np.concatenate(each) for each in zip(*parts, strict=True))
        return (scores, ids) if self.rerank is None else self.exact.rank(xq, ids, k)

    def search_range(
        self, xq: NDArray[np.float32], least: float, *, most: int = MOST_FOUND, within: Selection | None = None
    ) -> list[Found]:
        """Find the rows of each query that score at least so much, ``most`` of them at most: D and I (m,) for each.

        Asks for ten times as many rows, from 100 on, until the last one scores less.
        """
        found: list[Found] = [(np.empty(0, np.float32), np.empty(0, np.int64))] * len(xq)
        open_ones, k = np.arange(len(xq)), min(100, most)
        while len(open_ones):
            scores, ids = self.search(xq[open_ones], k, within=within)
            for i, mine, numbers in zip(open_ones, scores, ids, strict=True):
                reaching = (numbers != NO_ID) & (mine >= least)
                found[i] = mine[reaching], numbers[reaching]
            open_ones = open_ones[(scores[:, -1] >= least) & (ids[:, -1] != NO_ID)] if k < most else open_ones[:0]
            k = min(10 * k, most)
        return found

    def vector(self, number: int) -> NDArray[np.float32]:
        """Give the vector (d,) of an id; beside inverted lists as float16 kept it, normalised again."""
        vector = self.exact.take(np.array([number]))[0]
        return np.asarray(vector / np.linalg.norm(vector), np.float32)

    def lists_for(self, k: int, within: Selection | None = None) -> int:
        """Say how many lists to search for k rows of a selection, from how many are enough for ten of all rows.

        Of a selection they grow with the root of how much it leaves out; where a filter asks for more, searching goes
        on from there (jobs/BENCHMARKS.md, filters).
        """
        rows = self.ntotal if within is None else max(1, within.count)
        factor = _growth(k) * math.sqrt(self.ntotal / rows)
        holding = HELD * k * self.nlist / max(1, self.ntotal) if k > TUNED_K else 0.0
        return min(self.nlist, math.ceil(max((self.nprobe or 1) * factor, holding)))

    def margin_for(self, k: int) -> float | None:
        """Say how far lists may score below the nearest for k rows: it grows as the number of lists does."""
        return None if self.margin is None else self.margin * _growth(k)

    def _probe_near(
        self, x: NDArray[np.float32], wanted: int, lists: int, margin: float | None, allowed: Selection | None
    ) -> Found:
        """Search the nearest lists but for those beyond the margin; all of them, where that leaves too few rows."""
        nearness, numbers = nearest_lists(inner_ivf(self.whole), x, lists)
        if margin is None:
            return self.probe(x, wanted, nearness, numbers, allowed)
        near = np.where(nearness >= nearness[:, :1] - np.float32(margin), numbers, NO_ID)
        scores, ids = self.probe(x, wanted, nearness, near, allowed)
        short = np.flatnonzero((ids[:, -1] == NO_ID) & (near[:, -1] == NO_ID))
        if len(short):
            scores[short], ids[short] = self.probe(x[short], wanted, nearness[short], numbers[short], allowed)
        return scores, ids

    def _until_settled(
        self, x: NDArray[np.float32], k: int, wanted: int, lists: int, allowed: Selection | None
    ) -> Found:
        """Search more and more lists for each query, until as many again change nothing among its 4 k best.

        What a filter lets through may lie on another side of the space than the query, spread over lists that no tuned
        number of them reaches: with rows chosen by one coordinate, recall@10 was 0.41 without this.
        """
        nearness, numbers = every_list(inner_ivf(self.whole), x)
        scores = np.full((len(x), wanted), NO_SCORE, np.float32)
        ids = np.full((len(x), wanted), NO_ID, np.int64)
        unsettled, start, end = np.arange(len(x)), 0, lists
        while len(unsettled) and start < self.nlist:
            here = (unsettled, slice(start, end))
            more = self.probe(
                x[unsettled], wanted, np.ascontiguousarray(nearness[here]), np.ascontiguousarray(numbers[here]), allowed
            )
            before = ids[unsettled, : WATCHED * k]
            scores[unsettled], ids[unsettled] = best(
                np.concatenate([scores[unsettled], more[0]], axis=1),
                np.concatenate([ids[unsettled], more[1]], axis=1),
                wanted,
            )
            after = ids[unsettled, : WATCHED * k]
            changed = (np.sort(after, axis=1) != np.sort(before, axis=1)).sum(axis=1)
            unsettled = unsettled[(changed > WATCHED * k // SETTLED) | (after[:, :k] == NO_ID).any(axis=1)]
            start, end = end, min(2 * end, self.nlist)
        return scores, ids

    def probe(
        self,
        x: NDArray[np.float32],
        k: int,
        nearness: NDArray[np.float32],
        lists: NDArray[np.int64],
        allowed: Selection | None = None,
    ) -> Found:
        """Search given lists of base and delta by their codes alone.

        Args:
            x: queries as `transformed` gives them.
            nearness: their scores against the centroids of these lists (n, nprobe), which residual codes count from.
        """
        selected = {} if allowed is None else {"sel": allowed.selector}
        params = faiss.SearchParametersIVF(nprobe=lists.shape[1], **selected)
        every = (inner_ivf(self.whole), *self.deltas)
        found = [_preassigned(ivf, x, k, lists, nearness, params) for ivf in every]
        if len(found) == 1:
            return found[0]
        scores, ids = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
        return best(scores, ids, k)


def _growth(k: int) -> float:
    return float(max(1.0, k / TUNED_K) ** GROWTH)


def inner_ivf(index: faiss.Index) -> Any:  # faiss.IndexIVF or None: FAISS has no types, so nobody would be warned
    """Find the inverted file inside an index, behind a rotation if there is one; None for Flat."""
    return faiss.try_extract_index_ivf(index)


def held_by(flat: faiss.IndexFlat) -> Exact:
    """View the vectors that a Flat index holds; it has to outlive them."""
    return Exact([faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(-1, flat.d)])


def transformed(index: faiss.Index, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Do to vectors what an index does to them before its lists: a rotation, or nothing."""
    if isinstance(index, faiss.IndexPreTransform):
        for number in range(index.chain.size()):
            x = index.chain.at(number).apply(x)
    return np.ascontiguousarray(x)


def nearest_lists(ivf: faiss.IndexIVF, x: NDArray[np.float32], nprobe: int) -> Found:
    """Find the lists whose centroids are nearest to each vector (n, d): scores and numbers (n, nprobe)."""
    params = None
    if isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexHNSW):
        params = faiss.SearchParametersHNSW(efSearch=max(LEAST_BEAM, 2 * nprobe))
    scores, numbers = ivf.quantizer.search(x, nprobe, params=params)
    return scores, numbers


def every_list(ivf: faiss.IndexIVF, x: NDArray[np.float32]) -> Found:
    """Order all lists by how near their centroids are to each vector: scores and numbers (n, nlist)."""
    flat = _centroids(ivf)
    centroids = faiss.rev_swig_ptr(flat.get_xb(), ivf.nlist * ivf.d).reshape(ivf.nlist, ivf.d)
    return best(x @ centroids.T, np.tile(np.arange(ivf.nlist), (len(x), 1)), ivf.nlist)


def own_lists(ivf: faiss.IndexIVF, x: NDArray[np.float32]) -> Found:
    """Find the list whose centroid is truly nearest to each vector, whatever an HNSW quantiser would find: (n, 1)."""
    scores, numbers = _centroids(ivf).search(x, 1)
    return scores, numbers


def _centroids(ivf: faiss.IndexIVF) -> faiss.IndexFlat:
    quantizer = faiss.downcast_index(ivf.quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        quantizer = faiss.downcast_index(quantizer.storage)
    return quantizer


def _preassigned(
    ivf: faiss.IndexIVF,
    xq: NDArray[np.float32],
    k: int,
    lists: NDArray[np.int64],
    nearness: NDArray[np.float32],
    params: faiss.SearchParameters,
) -> Found:
    """Search given lists; FAISS's own wrapper of this call takes no parameters."""
    scores, ids = np.empty((len(xq), k), np.float32), np.empty((len(xq), k), np.int64)
    pointers = [faiss.swig_ptr(array) for array in (xq, lists, nearness, scores, ids)]
    ivf.search_preassigned_c(len(xq), pointers[0], k, *pointers[1:], False, params)
    scores[ids == NO_ID] = NO_SCORE
    return scores, ids
