import faiss
import numpy as np
import pytest

from pipeline.indexing.index import NO_ID, Index
from pipeline.indexing.queries import Queries
from pipeline.indexing.tune import DEPTHS, K, Truth, exact_neighbours, measure, recall_by_depth, recalls, tune
from tests.indexing.conftest import made_up_vectors


def blocks_of(vectors: np.ndarray, size: int) -> list[tuple[int, np.ndarray, None]]:
    return [(start, vectors[start : start + size], None) for start in range(0, len(vectors), size)]


def truth_of(vectors: np.ndarray, own: np.ndarray) -> Truth:
    (truth,) = exact_neighbours(blocks_of(vectors, 1000), [Queries("image", vectors[own], own)])
    return truth


def filled(factory: str, vectors: np.ndarray) -> faiss.Index:
    index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


def recall(ids: np.ndarray, truth: Truth) -> float:
    return float(recalls(ids, truth).mean())


@pytest.mark.parametrize("n", [1, 2, 5, 400])
@pytest.mark.parametrize("block", [7, 1000])
def test_exact_neighbours_are_those_of_a_full_sort_without_the_query_itself(n: int, block: int):
    vectors = made_up_vectors(n, 16)
    own = np.arange(0, n, 3)
    texts = made_up_vectors(7, 16, seed=1)
    kinds = [Queries("image", vectors[own], own), Queries("text", texts, np.full(7, NO_ID))]
    images, others = exact_neighbours(blocks_of(vectors, block), kinds)
    assert (images.kind, others.kind, len(others.ids)) == ("image", "text", 7)
    scores = vectors[own] @ vectors.T
    scores[np.arange(len(own)), own] = -np.inf
    for truth, wanted, most in ((images, scores, n - 1), (others, texts @ vectors.T, n)):
        expected = np.argsort(-wanted, axis=1, kind="stable")[:, : min(DEPTHS[-1], most)]
        np.testing.assert_array_equal(truth.ids[:, : expected.shape[1]], expected)


def test_recall_counts_what_is_found_and_forgives_ties_only():
    own = np.array([99])
    scores = np.linspace(1, 0.5, 30, dtype=np.float32)[None]
    scores[0, 10:12] = scores[0, 9]  # ranks 10, 11 and 12 tie
    truth = Truth("image", np.zeros((1, 4), np.float32), own, scores, np.arange(30)[None])
    assert recall(np.array([[99, *range(10)]]), truth) == 1.0
    assert recall(np.array([[*range(9), 11, 50]]), truth) == 1.0
    assert recall(np.array([[*range(5), 50, 51, 52, 53, 54, 55]]), truth) == 0.5
    assert recall(np.array([[99, *range(8), 12, 13]]), truth) == 0.8
    assert recall(np.array([[-1] * 11]), truth) == 0.0


def test_a_table_of_one_row_has_nothing_to_miss():
    vectors = made_up_vectors(1, 16)
    truth = truth_of(vectors, np.array([0]))
    assert recall(np.array([[0] + [-1] * K]), truth) == 1.0


def test_the_least_nprobe_is_chosen_that_meets_the_target():
    vectors = made_up_vectors(3000, 32)
    truth = truth_of(vectors, np.arange(0, 3000, 20))
    whole = Index(filled("IVF64,Flat", vectors), None, None, None)
    chosen, curve = tune(whole, 64, [truth], 0.9, 1)
    assert chosen.reaches(0.9)
    assert chosen.recall_at_10["image"] >= 0.9 + chosen.error_at_10["image"]
    tried = {point.nprobe: point for point in curve}
    assert sorted(tried) == list(tried)
    assert max(nprobe for nprobe, point in tried.items() if not point.reaches(0.9)) == chosen.nprobe - 1
    assert measure(whole, 64, [truth], 1).recall_at_10 == {"image": 1.0}
    assert tune(whole, 64, [truth], 1.0, 1)[0].recall_at_10 == {"image": 1.0}
    most, unreachable = tune(whole, 64, [truth], 1.1, 1)
    assert [point.nprobe for point in unreachable] == [1, 2, 4, 8, 16, 32, 64]
    assert most == unreachable[-1]


def test_the_worse_kind_of_query_decides():
    """Texts lie where no image is: their neighbours are in many lists, and a few of them have none."""
    vectors = made_up_vectors(3000, 32)
    texts = made_up_vectors(150, 32, seed=9) + 2.0 * made_up_vectors(1, 32, seed=10)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    own = np.arange(0, 3000, 20)
    kinds = [Queries("image", vectors[own], own), Queries("text", texts, np.full(150, NO_ID))]
    truths = exact_neighbours(blocks_of(vectors, 1000), kinds)
    whole = Index(filled("IVF64,Flat", vectors), None, None, None)
    alone = [tune(whole, 64, [truth], 0.9, 1)[0].nprobe for truth in truths]
    both, _ = tune(whole, 64, truths, 0.9, 1)
    assert alone[0] != alone[1]
    assert both.nprobe == max(alone)
    assert both.recall_at_10.keys() == {"image", "text"}


def test_recall_is_stated_at_every_depth():
    vectors = made_up_vectors(3000, 32)
    truth = truth_of(vectors, np.arange(0, 3000, 20))
    exact = Index(filled("Flat", vectors), None, None, None)
    assert recall_by_depth(exact, None, truth) == {"1": 1.0, "10": 1.0, "100": 1.0}
    lossy = recall_by_depth(Index(filled("IVF64,Flat", vectors), None, None, None), 2, truth)
    assert lossy["1"] > lossy["10"] > lossy["100"] > 0


def test_re_ranking_puts_back_what_codes_lose():
    vectors = made_up_vectors(3000, 32)
    index, truth = filled("IVF16,SQ4", vectors), truth_of(vectors, np.arange(0, 3000, 20))
    exact = vectors.astype(np.float16)
    codes_only = measure(Index(index, exact, 16, None), 16, [truth], 1).recall_at_10["image"]
    ranked_again = measure(Index(index, exact, 16, 4), 16, [truth], 1).recall_at_10["image"]
    assert codes_only < 0.97 < 0.99 <= ranked_again
