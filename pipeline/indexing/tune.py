"""An index and queries in; nprobe, recall and speed out, measured, not assumed.

Queries are of two kinds, since text lies outside of what images are like, and an index may fail on the one and look
fine on the other. One by image is a row of the table that is left out of its own answer, in the exact search as in the
index: a row would always find itself, and flatter. Where scores tie, any of the tied rows counts as right.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.indexing.index import Index
from pipeline.indexing.queries import Queries

K = 10
DEPTHS = (1, 10, 100)  # that recall is stated at
SPARE = 20  # ranks kept beyond the deepest, so that rows that tie with it are known
TIE = 1e-6
LATENCY_QUERIES = 100
BISECTIONS = 3  # of the nprobe between one that was too few and its double that was enough


@dataclass(frozen=True)
class Truth:
    """Queries and their exact neighbours, best first, the query's own row left out."""

    kind: str
    xq: NDArray[np.float32]  # (n, d)
    own: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32]  # (n, up to 100 + SPARE)
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Measurement:
    """What one setting of an index does."""

    nprobe: int | None
    recall_at_10: dict[str, float]  # by kind of query
    error_at_10: dict[str, float]  # standard error of the mean over queries
    latency_ms: float  # mean of single queries, one thread
    qps: float  # queries in one batch, all threads

    def reaches(self, target: float) -> bool:
        """Tell whether recall is above a target by its standard error: other queries might miss it otherwise."""
        return all(recall - self.error_at_10[kind] >= target for kind, recall in self.recall_at_10.items())


def exact_neighbours(
    blocks: Iterable[tuple[int, NDArray[np.float32], pa.ChunkedArray]], kinds: Sequence[Queries]
) -> list[Truth]:
    """Search all vectors, block by block and once for all kinds, by inner product: larger is better."""
    xq, own = np.concatenate([kind.xq for kind in kinds]), np.concatenate([kind.own for kind in kinds])
    depth = DEPTHS[-1] + SPARE + 1  # one more, for the query's own row
    scores = np.full((len(xq), depth), -np.inf, np.float32)
    ids = np.full((len(xq), depth), -1, np.int64)
    for base, block, _ in blocks:
        found, where = faiss.knn(xq, np.ascontiguousarray(block), min(depth, len(block)), faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores, found], axis=1)
        ids = np.concatenate([ids, where + base], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
    scores[ids == own[:, None]] = -np.inf  # sorts behind every neighbour
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
    ends = np.cumsum([len(kind.xq) for kind in kinds])[:-1]
    parts = zip(kinds, np.split(scores, ends), np.split(ids, ends), strict=True)
    return [Truth(kind.kind, kind.xq, kind.own, mine, of_mine) for kind, mine, of_mine in parts]


def recalls(ids: NDArray[np.int64], truth: Truth, k: int = K) -> NDArray[np.float64]:
    """Give for each query the share of its k exact neighbours in its answer (n, k + 1), which may hold its own row."""
    k = min(k, int(np.isfinite(truth.scores[0]).sum())) if len(truth.scores) else 0
    if k == 0:
        return np.ones(len(ids))  # a single row has no neighbours to miss
    hits = np.empty(len(ids))
    for i, (answer, own, scores, exact) in enumerate(zip(ids, truth.own, truth.scores, truth.ids, strict=True)):
        right = exact[scores >= scores[k - 1] - TIE]
        hits[i] = np.isin(answer[answer != own][:k], right).sum()
    return hits / k


def tune(
    index: Index, nlist: int, truths: Sequence[Truth], target: float, threads: int
) -> tuple[Measurement, list[Measurement]]:
    """Find the least nprobe whose recall reaches the target on every kind of query; give it, and all that were tried.

    It is doubled until it is enough, or every list is searched; then the interval between what was too little and what
    was enough is halved a few times. Flat has one setting.
    """
    curve: dict[int, Measurement] = {}

    def is_enough(nprobe: int) -> bool:
        curve[nprobe] = measure(index, nprobe or None, truths, threads)
        return curve[nprobe].reaches(target)

    enough = min(1, nlist)
    while not is_enough(enough) and enough < nlist:
        enough = min(2 * enough, nlist)
    too_few = enough // 2
    for _ in range(BISECTIONS if curve[enough].reaches(target) else 0):
        if (middle := (too_few + enough) // 2) == too_few:
            break
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return curve[enough], [curve[nprobe] for nprobe in sorted(curve)]


def measure(index: Index, nprobe: int | None, truths: Sequence[Truth], threads: int) -> Measurement:
    """Measure recall@10 on all queries, and speed on one thread and on all."""
    faiss.omp_set_num_threads(threads)
    started = time.perf_counter()
    answers = [index.search(truth.xq, K + 1, nprobe)[1] for truth in truths]
    batch_s = time.perf_counter() - started
    faiss.omp_set_num_threads(1)
    single = np.concatenate([truth.xq[: LATENCY_QUERIES // len(truths)] for truth in truths])
    started = time.perf_counter()
    for i in range(len(single)):
        index.search(single[i : i + 1], K, nprobe)
    single_s = time.perf_counter() - started
    faiss.omp_set_num_threads(threads)
    found = {truth.kind: recalls(ids, truth) for truth, ids in zip(truths, answers, strict=True)}
    return Measurement(
        nprobe=nprobe,
        recall_at_10={kind: round(float(each.mean()), 4) for kind, each in found.items()},
        error_at_10={kind: round(float(each.std() / len(each) ** 0.5), 5) for kind, each in found.items()},
        latency_ms=round(single_s / len(single) * 1e3, 3),
        qps=round(sum(len(ids) for ids in answers) / batch_s, 1),
    )


def recall_by_depth(index: Index, nprobe: int | None, truth: Truth) -> dict[str, float]:
    """Measure recall at every depth: in answers of that many, as people ask for them."""
    return {str(k): round(float(recalls(index.search(truth.xq, k + 1, nprobe)[1], truth, k).mean()), 4) for k in DEPTHS}
