from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import faiss
import numpy as np
import pytest

from pipeline.indexing.exact import NO_ID, Exact, Selection, best
from pipeline.indexing.index import SEARCHED_EXACTLY, Index
from tests.indexing.conftest import made_up_vectors

N = 20_000


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return made_up_vectors(N, 32)


@pytest.fixture(scope="module")
def xq() -> np.ndarray:
    return made_up_vectors(50, 32, seed=7)


@pytest.fixture(scope="module")
def index(vectors: np.ndarray) -> Index:
    whole = faiss.index_factory(32, "IVF128,SQ8", faiss.METRIC_INNER_PRODUCT)
    whole.train(vectors)
    whole.add(vectors)
    halves = [vectors[:9000].astype(np.float16), vectors[9000:].astype(np.float16)]
    return Index(whole, Exact(halves), nprobe=8, rerank=4)


def exactly(vectors: np.ndarray, xq: np.ndarray, k: int, flags: np.ndarray | None = None) -> np.ndarray:
    scores = xq @ vectors.T
    if flags is not None:
        scores[:, ~flags] = -np.inf
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def overlap(ids: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.mean([np.isin(mine, true).mean() for mine, true in zip(ids, wanted, strict=True)]))


def test_exact_search_finds_what_a_full_sort_does(index: Index, vectors: np.ndarray, xq: np.ndarray):
    scores, ids = index.search(xq, 100, exact=True)
    assert overlap(ids, exactly(vectors, xq, 100)) > 0.99  # float16 swaps neighbours of next to the same score
    np.testing.assert_allclose(scores, np.take_along_axis(xq @ vectors.T, ids, axis=1), atol=5e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_scores_are_those_of_the_vectors_not_of_the_codes(index: Index, vectors: np.ndarray, xq: np.ndarray):
    scores, ids = index.search(xq, 10)
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", xq, vectors[ids]), atol=5e-4)


@pytest.mark.parametrize("margin", [0.05, 0.2, 2.0])
def test_lists_beyond_the_margin_are_left_out_and_no_others(index: Index, xq: np.ndarray, margin: float):
    centroids = faiss.extract_index_ivf(index.whole).quantizer.reconstruct_n(0, 128)
    nearness = xq @ centroids.T
    for query, scores in zip(xq, nearness, strict=True):
        near = int((scores >= scores.max() - margin).sum())
        wanted = index.search(query[None], 10, nprobe=near)
        np.testing.assert_array_equal(index.search(query[None], 10, nprobe=128, margin=margin)[1], wanted[1])


def test_a_margin_that_leaves_too_few_rows_is_no_margin(index: Index, vectors: np.ndarray, xq: np.ndarray):
    for asked in ({"nprobe": 128, "margin": 0.0}, {}):
        _, ids = replace(index, margin=0.0).search(xq, 5000, **asked)
        assert (ids != NO_ID).all()
        assert (np.sort(ids, axis=1)[:, 1:] != np.sort(ids, axis=1)[:, :-1]).all()
    assert overlap(index.search(xq, 5000, nprobe=128, margin=0.0)[1], exactly(vectors, xq, 5000)) > 0.98


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.0001])
def test_a_selection_is_kept_and_recall_with_it(index: Index, vectors: np.ndarray, xq: np.ndarray, share: float):
    flags = np.random.default_rng(1).random(N) < share
    within = Selection(flags)
    scores, ids = index.search(xq, 10, within=within)
    assert flags[ids[ids != NO_ID]].all()
    assert ((ids != NO_ID).sum(axis=1) == min(10, within.count)).all()
    assert np.isneginf(scores[ids == NO_ID]).all()
    found = min(10, within.count)
    assert overlap(ids[:, :found], exactly(vectors, xq, found, flags)) >= 0.95
    assert (share * N <= SEARCHED_EXACTLY) == (index.lists_for(10, within) >= 8 * (N / SEARCHED_EXACTLY) ** 0.5)


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_recall_is_kept_where_a_filter_leaves_what_is_far_from_the_query(
    index: Index, vectors: np.ndarray, share: float
):
    """All that is asked for lies where no query does: a fixed number of lists finds next to none of it."""
    flags = vectors[:, 0] > np.quantile(vectors[:, 0], 1 - share)
    xq = vectors[np.argsort(vectors[:, 0])[:50]]
    within = Selection(flags)
    wanted = exactly(vectors, xq, 10, flags)
    fixed = index.search(xq, 10, within=within, nprobe=index.lists_for(10, within))[1]
    assert overlap(fixed, wanted) < 0.9
    assert overlap(index.search(xq, 10, within=within)[1], wanted) >= 0.95


def test_nothing_selected_is_nothing_found(index: Index, xq: np.ndarray):
    none = Selection(np.zeros(N, bool))
    for exact in (False, True):
        scores, ids = index.search(xq, 3, within=none, exact=exact)
        assert (ids == NO_ID).all()
        assert np.isneginf(scores).all()
    assert [len(ids) for _, ids in index.search_range(xq[:2], -1.0, within=none)] == [0, 0]


@pytest.mark.parametrize("nprobe", [1, 8, 128])
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_what_is_gone_never_comes_up(index: Index, vectors: np.ndarray, xq: np.ndarray, nprobe: int, k: int):
    gone = np.random.default_rng(2).random(N) < 0.3
    alive = replace(index, live=Selection(~gone))
    chosen = Selection(np.random.default_rng(3).random(N) < 0.4)
    for within in (None, chosen, Selection.of(np.flatnonzero(gone)[:50], N)):
        for exact in (False, True):
            _, ids = alive.search(xq, k, nprobe=nprobe, within=within, exact=exact)
            found = ids[ids != NO_ID]
            assert not gone[found].any()
            assert within is None or within.flags[found].all()
    _, ids = alive.search(xq, 10, nprobe=128)
    assert overlap(ids, exactly(vectors, xq, 10, ~gone)) > 0.98
    assert alive.ntotal == (~gone).sum()


def test_more_lists_are_searched_for_more_rows(index: Index, vectors: np.ndarray, xq: np.ndarray):
    assert [index.lists_for(k) for k in (1, 10, 40, 1000, 10_000)] == [8, 8, 13, 32, 128]
    _, ids = index.search(xq, 10_000)
    assert overlap(ids, exactly(vectors, xq, 10_000)) > 0.97
    assert ((ids != NO_ID).sum(axis=1) == 10_000).all()
    assert all(len(set(row.tolist())) == 10_000 for row in ids)


def test_fewer_rows_than_asked_for_are_followed_by_none():
    vectors = made_up_vectors(5, 8)
    whole = faiss.index_factory(8, "IVF2,SQ8", faiss.METRIC_INNER_PRODUCT)
    whole.train(vectors)
    whole.add(vectors)
    scores, ids = Index(whole, Exact([vectors.astype(np.float16)]), nprobe=2, rerank=4).search(vectors, 8)
    assert ids.shape == scores.shape == (5, 8)
    assert sorted(ids[0][:5].tolist()) == [0, 1, 2, 3, 4]
    assert (ids[:, 5:] == NO_ID).all()


def test_a_range_holds_every_row_that_scores_so_much(index: Index, vectors: np.ndarray, xq: np.ndarray):
    least = float(np.sort((xq[:5] @ vectors.T).ravel())[-1500])
    truth = xq[:5] @ vectors.T >= least
    found = index.search_range(xq[:5], least)
    for (scores, ids), wanted in zip(found, truth, strict=True):
        assert (scores >= least).all()
        assert (np.diff(scores) <= 0).all()
        assert wanted.sum() == 0 or np.isin(np.flatnonzero(wanted), ids).mean() > 0.95
    assert sum(len(ids) for _, ids in found) == pytest.approx(truth.sum(), rel=0.05)
    assert [len(ids) for _, ids in index.search_range(xq[:2], -1.0, most=300)] == [300, 300]
    assert [len(ids) for _, ids in index.search_range(xq[:2], 2.0)] == [0, 0]


def test_parameters_travel_with_each_call_from_many_threads(index: Index, xq: np.ndarray):
    gone = replace(index, live=Selection(np.arange(N) % 2 == 0))
    calls = [
        (chosen, nprobe, Selection(np.arange(N) % modulus != 0))
        for chosen in (index, gone)
        for nprobe in (1, 4, 32)
        for modulus in (3, 5)
    ] * 5
    alone = [chosen.search(xq, 10, nprobe=nprobe, within=within)[1] for chosen, nprobe, within in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda call: call[0].search(xq, 10, nprobe=call[1], within=call[2])[1], calls))
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_cannot_be_asked_is_refused(index: Index, xq: np.ndarray):
    for bad in (xq[:, :31], xq.astype(np.float64), xq[0]):
        with pytest.raises(ValueError, match=r"queries: wanted float32 \(n, 32\)"):
            index.search(bad, 10)
    for k in (0, -1, 10_001):
        with pytest.raises(ValueError, match="k: wanted 1 to 10000"):
            index.search(xq, k)


def test_vectors_are_read_by_id_from_several_files(vectors: np.ndarray):
    exact = Exact([vectors[:100], vectors[100:101], vectors[101:5000]])
    ids = np.array([4999, 0, 100, 99, 101, 100, 2500])
    np.testing.assert_array_equal(exact.take(ids), vectors[ids])
    assert len(exact) == 5000
    flags = np.random.default_rng(0).random(5000) < 0.3
    read = list(exact.blocks(Selection(flags)))
    np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in read]), np.flatnonzero(flags))
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in read]), vectors[:5000][flags])


def test_the_best_are_kept_in_order():
    scores = np.array([[0.1, 0.9, 0.5], [0.2, 0.2, 0.3]], np.float32)
    ids = np.array([[7, 8, 9], [1, 2, 3]])
    kept, whose = best(scores, ids, 2)
    assert whose.tolist() == [[8, 9], [3, 1]]
    np.testing.assert_allclose(kept, [[0.9, 0.5], [0.3, 0.2]])
    assert best(scores, ids, 4)[1].tolist() == [[8, 9, 7, NO_ID], [3, 1, 2, NO_ID]]
