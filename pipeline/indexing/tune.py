"""An index and queries in; nprobe, recall and speed out, measured, not assumed.

Queries are of two kinds, since text lies outside of what images are like, and an index may fail on the one and look
fine on the other. One by image is a row of the table that is left out of its own answer, in the exact search as in the
index: a row would always find itself, and flatter. A third of the queries choose nprobe; recall is stated for the
others, which had no part in the choice. Where scores tie, any of the tied rows counts as right.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from pipeline.indexing.exact import NO_ID, NO_SCORE, Block, Selection, best, nearest
from pipeline.indexing.index import TUNED_K as K
from pipeline.indexing.index import Index
from pipeline.indexing.queries import Queries

DEPTHS = (1, K, 100)  # that recall is stated at
SPARE = 100  # ranks kept beyond the deepest: rows that tie with it, and rows that take the place of deleted ones
TIE = 1e-6
LATENCY_QUERIES = 100
BISECTIONS = 3  # of the nprobe between one that was too few and its double that was enough
MARGIN, MARGIN_BISECTIONS = 0.64, 5  # of scores, that hardly a list lies below the nearest one: to steps of 0.02
CHOOSES = 3  # every third query chooses nprobe
Setting = tuple[int, float | None]  # nprobe and margin
FIRST: Setting = (1, None)
STEP = 1.125  # by which nprobe grows where what it was chosen by promised too much


@dataclass(frozen=True)
class Truth:
    """Queries and their exact neighbours, best first, the query's own row left out."""

    kind: str
    xq: NDArray[np.float32]  # (n, d)
    own: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float32]  # (n, up to 100 + SPARE)
    ids: NDArray[np.int64]

    def part(self, queries: slice | NDArray[np.bool_]) -> "Truth":
        """Give some of the queries."""
        return Truth(self.kind, self.xq[queries], self.own[queries], self.scores[queries], self.ids[queries])


@dataclass(frozen=True)
class Measurement:
    """What one setting of an index does."""

    nprobe: int | None
    margin: float | None
    recall_at_10: dict[str, float]  # by kind of query
    error_at_10: dict[str, float]  # standard error of the mean over queries
    latency_ms: float  # mean of single queries, one thread
    qps: float  # queries in one batch, all threads

    def reaches(self, target: float, errors: float = 0.0) -> bool:
        """Tell whether recall is above a target, by so many standard errors: other queries might miss it otherwise."""
        return all(recall - errors * self.error_at_10[kind] >= target for kind, recall in self.recall_at_10.items())


def exact_neighbours(blocks: Iterable[Block], kinds: Sequence[Queries]) -> list[Truth]:
    """Search all vectors, block by block and once for all kinds, by inner product: larger is better."""
    xq, own = np.concatenate([kind.xq for kind in kinds]), np.concatenate([kind.own for kind in kinds])
    scores, ids = nearest(blocks, xq, DEPTHS[-1] + SPARE + 1)  # one more, for the query's own row
    scores[ids == own[:, None]] = NO_SCORE  # sorts behind every neighbour
    scores, ids = best(scores, ids, scores.shape[1] - 1)
    ends = np.cumsum([len(kind.xq) for kind in kinds])[:-1]
    parts = zip(kinds, np.split(scores, ends), np.split(ids, ends), strict=True)
    return [Truth(kind.kind, kind.xq, kind.own, mine, of_mine) for kind, mine, of_mine in parts]


def brought_up(truths: Sequence[Truth], added: Iterable[Block], live: Selection) -> list[Truth]:
    """Bring exact neighbours up to date: without rows that are deleted, with vectors that were added.

    As many ranks are left as neighbours of the query that lost most of them: what comes behind was never kept.
    """
    kinds = [Queries(truth.kind, truth.xq, truth.own) for truth in truths]
    renewed = []
    for truth, new in zip(truths, exact_neighbours(added, kinds), strict=True):
        gone = (truth.ids == NO_ID) | ~live.flags[truth.ids]
        scores = np.concatenate([np.where(gone, NO_SCORE, truth.scores), new.scores], axis=1)
        ids = np.concatenate([np.where(gone, NO_ID, truth.ids), new.ids], axis=1)
        width = truth.ids.shape[1]
        known = int((~gone).sum(axis=1).min()) if (truth.ids != NO_ID).all() else width  # else it knew every row
        renewed.append(Truth(truth.kind, truth.xq, truth.own, *best(scores, ids, known)))  # past that, some are unknown
    return renewed


def save(truths: Sequence[Truth], path: Path) -> None:
    """Write queries and their neighbours to an .npz file."""
    arrays = {
        f"{truth.kind}.{name}": getattr(truth, name) for truth in truths for name in ("xq", "own", "scores", "ids")
    }
    np.savez(path, **arrays)


def load(path: Path) -> list[Truth]:
    """Read them again."""
    with np.load(path) as arrays:
        kinds = dict.fromkeys(name.partition(".")[0] for name in arrays.files)
        return [Truth(kind, *(arrays[f"{kind}.{name}"] for name in ("xq", "own", "scores", "ids"))) for kind in kinds]


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
    index: Index, truths: Sequence[Truth], target: float, threads: int, first: Setting = FIRST
) -> tuple[Measurement, list[Measurement]]:
    """Find the least nprobe whose recall reaches the target on every kind of query; give it, and all that were tried.

    A setting that was tuned before is kept where it is still enough. Else, from its nprobe, nprobe is doubled until it
    is enough, or every list is searched; then the interval between what was too little and what was enough is halved a
    few times. Then lists that lie far from a query are left out, as many as the target allows. Flat has one setting. If
    the other queries, for which recall is stated, find less, nprobe and margin grow until they do not.
    """
    choosing = [truth.part(slice(None, None, CHOOSES)) for truth in truths]
    stating = stated(truths)
    curve: dict[int, Measurement] = {}
    first_nprobe, first_margin = first
    if first != FIRST:
        found = measure(index, min(first_nprobe, index.nlist), first_margin, stating, threads)
        if found.reaches(target):
            return found, [measure(index, min(first_nprobe, index.nlist), None, choosing, threads)]

    def is_enough(nprobe: int) -> bool:
        curve[nprobe] = measure(index, nprobe or None, None, choosing, threads)
        return curve[nprobe].reaches(target, errors=1)

    nlist = index.nlist
    enough = min(first_nprobe, nlist)
    while not is_enough(enough) and enough < nlist:
        enough = min(2 * enough, nlist)
    too_few = enough // 2 if enough != first_nprobe else 0
    for _ in range(BISECTIONS if curve[enough].reaches(target, errors=1) else 0):
        if (middle := (too_few + enough) // 2) == too_few:
            break
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    margin = _margin(index, enough, choosing, target, threads) if curve[enough].reaches(target, errors=1) else None
    while not (found := measure(index, enough or None, margin, stating, threads)).reaches(target) and enough < nlist:
        enough = min(nlist, math.ceil(enough * STEP))
        margin = None if margin is None or enough == nlist else round(margin * STEP, 4)
    return found, [curve[nprobe] for nprobe in sorted(curve)]


def _margin(index: Index, nprobe: int, choosing: Sequence[Truth], target: float, threads: int) -> float | None:
    """Find the least margin that keeps recall at the target, by halving; None without lists."""
    if not nprobe:
        return None
    too_small, enough = 0.0, MARGIN
    for _ in range(MARGIN_BISECTIONS):
        middle = (too_small + enough) / 2
        is_enough = measure(index, nprobe, middle, choosing, threads).reaches(target, errors=1)
        too_small, enough = (too_small, middle) if is_enough else (middle, enough)
    return round(enough, 4)


def stated(truths: Sequence[Truth]) -> list[Truth]:
    """Give the queries that recall is stated for; all of them where there are too few to split."""
    rest = [truth.part(np.arange(len(truth.xq)) % CHOOSES != 0) for truth in truths]
    return [other if len(other.xq) else truth for other, truth in zip(rest, truths, strict=True)]


def measure(
    index: Index, nprobe: int | None, margin: float | None, truths: Sequence[Truth], threads: int
) -> Measurement:
    """Measure recall@10 on all queries, and speed on one thread and on all."""
    faiss.omp_set_num_threads(threads)
    started = time.perf_counter()
    answers = [index.search(truth.xq, K + 1, nprobe=nprobe, margin=margin)[1] for truth in truths]
    batch_s = time.perf_counter() - started
    faiss.omp_set_num_threads(1)
    single = np.concatenate([truth.xq[: LATENCY_QUERIES // len(truths)] for truth in truths])
    started = time.perf_counter()
    for i in range(len(single)):
        index.search(single[i : i + 1], K, nprobe=nprobe, margin=margin)
    single_s = time.perf_counter() - started
    faiss.omp_set_num_threads(threads)
    found = {truth.kind: recalls(ids, truth) for truth, ids in zip(truths, answers, strict=True)}
    return Measurement(
        nprobe=nprobe,
        margin=margin,
        recall_at_10={kind: round(float(each.mean()), 4) for kind, each in found.items()},
        error_at_10={kind: round(float(each.std() / len(each) ** 0.5), 5) for kind, each in found.items()},
        latency_ms=round(single_s / len(single) * 1e3, 3),
        qps=round(sum(len(ids) for ids in answers) / batch_s, 1),
    )


def qps_one_thread(index: Index, chosen: Measurement, truths: Sequence[Truth]) -> float:
    """Measure a batch of queries on one thread."""
    xq = np.concatenate([truth.xq[:LATENCY_QUERIES] for truth in truths])
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    started = time.perf_counter()
    index.search(xq, K, nprobe=chosen.nprobe, margin=chosen.margin)
    seconds = time.perf_counter() - started
    faiss.omp_set_num_threads(threads)
    return round(len(xq) / seconds, 1)


def recall_by_depth(index: Index, truth: Truth) -> dict[str, float]:
    """Measure recall at every depth: in answers of that many, as people ask for them."""
    found = {k: index.search(truth.xq, k + 1, nprobe=index.lists_for(k), margin=index.margin_for(k))[1] for k in DEPTHS}
    return {str(k): round(float(recalls(ids, truth, k).mean()), 4) for k, ids in found.items()}
