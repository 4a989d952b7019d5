import faiss
import numpy as np
import pytest

from pipeline.indexing.index import Index
from pipeline.indexing.tune import K, Truth, exact_neighbours, measure, recall, tune
from tests.indexing.conftest import made_up_vectors


def blocks_of(vectors: np.ndarray, size: int) -> list[tuple[int, np.ndarray, None]]:
    return [(start, vectors[start : start + size], None) for start in range(0, len(vectors), size)]


@pytest.mark.parametrize("n", [1, 2, 5, 400])
@pytest.mark.parametrize("block", [7, 1000])
def test_exact_neighbours_are_those_of_a_full_sort_without_the_query_itself(n: int, block: int):
    vectors = made_up_vectors(n, 16)
    own = np.arange(0, n, 3)
    truth = exact_neighbours(blocks_of(vectors, block), vectors[own], own)
    scores = vectors[own] @ vectors.T
    scores[np.arange(len(own)), own] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, : min(K, n - 1)]
    np.testing.assert_array_equal(truth.ids[:, : expected.shape[1]], expected)


def test_recall_counts_what_is_found_and_forgives_ties_only():
    own = np.array([99])
    scores = np.linspace(1, 0.5, 30, dtype=np.float32)[None]
    scores[0, 10:12] = scores[0, 9]  # ranks 10, 11 and 12 tie
    truth = Truth(np.zeros((1, 4), np.float32), own, scores, np.arange(30)[None])
    assert recall(np.array([[99, *range(10)]]), truth) == 1.0
    assert recall(np.array([[*range(9), 11, 50]]), truth) == 1.0
    assert recall(np.array([[*range(5), 50, 51, 52, 53, 54, 55]]), truth) == 0.5
    assert recall(np.array([[99, *range(8), 12, 13]]), truth) == 0.8
    assert recall(np.array([[-1] * 11]), truth) == 0.0


def test_a_table_of_one_row_has_nothing_to_miss():
    vectors = made_up_vectors(1, 16)
    truth = exact_neighbours(blocks_of(vectors, 10), vectors, np.array([0]))
    assert recall(np.array([[0] + [-1] * K]), truth) == 1.0


def test_nprobe_grows_until_the_target_is_met():
    vectors = made_up_vectors(3000, 32)
    index = faiss.index_factory(32, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    own = np.arange(0, 3000, 20)
    truth = exact_neighbours(blocks_of(vectors, 1000), vectors[own], own)
    whole = Index(index, None, None, None)
    curve = tune(whole, 64, truth, 0.9, 1)
    assert [point.nprobe for point in curve] == [2**i for i in range(len(curve))]
    assert curve[0].recall_at_10 < 0.9 <= curve[-1].recall_at_10
    assert all(point.recall_at_10 < 0.9 for point in curve[:-1])
    assert measure(whole, 64, truth, 1).recall_at_10 == 1.0
    assert tune(whole, 64, truth, 1.0, 1)[-1].recall_at_10 == 1.0


def test_re_ranking_puts_back_what_codes_lose():
    vectors = made_up_vectors(3000, 32)
    index = faiss.index_factory(32, "IVF16,SQ4", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    own = np.arange(0, 3000, 20)
    truth = exact_neighbours(blocks_of(vectors, 1000), vectors[own], own)
    exact = vectors.astype(np.float16)
    codes_only = measure(Index(index, exact, 16, None), 16, truth, 1).recall_at_10
    ranked_again = measure(Index(index, exact, 16, 4), 16, truth, 1).recall_at_10
    assert codes_only < 0.97 < 0.99 <= ranked_again
