"""An index and rows held out as queries in; nprobe, recall and speed out, measured, not assumed.

A query is a row of the table that is left out of its own answer, in the exact search as in the index: a row would
always find itself, and flatter. Where scores tie, any of the tied rows counts as right.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.indexing.index import Index

K = 10
SPARE = 20  # ranks kept beyond K, so that rows that tie with rank K are known
TIE = 1e-6
LATENCY_QUERIES = 100


@dataclass(frozen=True)
class Truth:
    """Queries and their exact neighbours, best first, the query's own row left out."""

    xq: NDArray[np.float32]  # (n, d)
    own: NDArray[np.int64]  # (n,): the id of each query's row
    scores: NDArray[np.float32]  # (n, up to K + SPARE)
    ids: NDArray[np.int64]


@dataclass(frozen=True)
class Measurement:
    """What one setting of an index does."""

    nprobe: int | None
    recall_at_10: float
    latency_ms: float  # mean of single queries, one thread
    qps: float  # queries in one batch, all threads


def exact_neighbours(
    blocks: Iterable[tuple[int, NDArray[np.float32], pa.ChunkedArray]],
    xq: NDArray[np.float32],
    own: NDArray[np.int64],
) -> Truth:
    """Search all vectors, block by block, by inner product: larger is better."""
    depth = K + SPARE + 1  # one more, for the query's own row
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
    return Truth(xq, own, np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1))


def recall(ids: NDArray[np.int64], truth: Truth) -> float:
    """Share of the K exact neighbours that an answer (n, K + 1), which may hold the query's own row, contains."""
    k = min(K, int(np.isfinite(truth.scores[0]).sum())) if len(truth.scores) else 0
    if k == 0:
        return 1.0  # a single row has no neighbours to miss
    hits = 0
    for answer, own, scores, exact in zip(ids, truth.own, truth.scores, truth.ids, strict=True):
        right = exact[scores >= scores[k - 1] - TIE]
        hits += int(np.isin(answer[answer != own][:k], right).sum())
    return hits / (k * len(ids))


def tune(index: Index, nlist: int, truth: Truth, target: float, threads: int) -> list[Measurement]:
    """Double nprobe until recall reaches the target or every list is searched; Flat has one setting."""
    curve: list[Measurement] = []
    nprobe = 1
    while True:
        curve.append(measure(index, min(nprobe, nlist) or None, truth, threads))
        if curve[-1].recall_at_10 >= target or nprobe >= nlist:
            return curve
        nprobe *= 2


def measure(index: Index, nprobe: int | None, truth: Truth, threads: int) -> Measurement:
    """Measure recall@10 on all queries, and speed on one thread and on all."""
    faiss.omp_set_num_threads(threads)
    started = time.perf_counter()
    _, ids = index.search(truth.xq, K + 1, nprobe)
    batch_s = time.perf_counter() - started
    faiss.omp_set_num_threads(1)
    single = truth.xq[:LATENCY_QUERIES]
    started = time.perf_counter()
    for i in range(len(single)):
        index.search(single[i : i + 1], K, nprobe)
    single_s = time.perf_counter() - started
    faiss.omp_set_num_threads(threads)
    return Measurement(
        nprobe=nprobe,
        recall_at_10=round(recall(ids, truth), 4),
        latency_ms=round(single_s / len(single) * 1e3, 3),
        qps=round(len(ids) / batch_s, 1),
    )
