from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from pipeline.indexing.exact import NO_ID, Block, Exact, Selection
from pipeline.indexing.index import Index
from pipeline.indexing.queries import Queries
from pipeline.indexing.tune import (
    DEPTHS,
    SPARE,
    K,
    Truth,
    brought_up,
    exact_neighbours,
    load,
    measure,
    recall_by_depth,
    recalls,
    save,
    stated,
    tune,
)
from tests.indexing.conftest import made_up_vectors


def blocks_of(vectors: np.ndarray, size: int) -> list[Block]:
    ids = np.arange(len(vectors))
    return [(ids[start : start + size], vectors[start : start + size]) for start in range(0, len(vectors), size)]


def index_of(factory: str, vectors: np.ndarray) -> Index:
    return Index(filled(factory, vectors), Exact([vectors]))


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
    whole = index_of("IVF64,Flat", vectors)
    chosen, curve = tune(whole, [truth], 0.9, 1)
    assert chosen.reaches(0.9)
    tried = {point.nprobe: point for point in curve}
    assert sorted(tried) == list(tried)
    least = tried[chosen.nprobe]  # by the queries that choose; the others are what recall is stated for
    assert least.recall_at_10["image"] >= 0.9 + least.error_at_10["image"]
    too_few = [nprobe for nprobe, point in tried.items() if not point.reaches(0.9, errors=1)]
    assert max(too_few) == chosen.nprobe - 1
    assert measure(whole, 64, None, [truth], 1).recall_at_10 == {"image": 1.0}
    assert tune(whole, [truth], 1.0, 1)[0].recall_at_10 == {"image": 1.0}
    most, unreachable = tune(whole, [truth], 1.1, 1)
    assert [point.nprobe for point in unreachable] == [1, 2, 4, 8, 16, 32, 64]
    assert (most.nprobe, most.recall_at_10) == (64, {"image": 1.0})


def test_lists_far_from_a_query_are_left_out_as_far_as_the_target_allows():
    vectors = made_up_vectors(3000, 32)
    truth = truth_of(vectors, np.arange(0, 3000, 20))
    whole = index_of("IVF64,Flat", vectors)
    chosen, _ = tune(whole, [truth], 0.9, 1)
    choosing = truth.part(slice(None, None, 3))
    assert 0 < chosen.margin < 0.64
    assert measure(whole, chosen.nprobe, chosen.margin, [choosing], 1).reaches(0.9, errors=1)
    assert not measure(whole, chosen.nprobe, chosen.margin - 0.02, [choosing], 1).reaches(0.9, errors=1)
    assert tune(whole, [truth], 1.1, 1)[0].margin is None


def test_recall_is_stated_for_queries_that_did_not_choose():
    vectors = made_up_vectors(3000, 32)
    truth = truth_of(vectors, np.arange(0, 3000, 20))
    (others,) = stated([truth])
    assert (len(truth.xq), len(others.xq)) == (150, 100)
    chosen, _ = tune(index_of("IVF64,Flat", vectors), [truth], 0.9, 1)
    assert (
        chosen.recall_at_10
        == measure(index_of("IVF64,Flat", vectors), chosen.nprobe, chosen.margin, [others], 1).recall_at_10
    )
    misleading = Truth("image", truth.xq.copy(), truth.own, truth.scores, truth.ids)
    misleading.xq[::3] = vectors[truth.ids[::3, 0]]  # these find their neighbours with next to no lists
    whole = index_of("IVF64,Flat", vectors)
    assert tune(whole, [misleading], 0.9, 1)[0].reaches(0.9)


def test_exact_neighbours_are_brought_up_to_date_as_if_they_were_searched_anew(tmp_path: Path):
    vectors, rng = made_up_vectors(3000, 16), np.random.default_rng(0)
    own, texts = np.arange(0, 2000, 20), made_up_vectors(40, 16, seed=1)
    kinds = [Queries("image", vectors[own], own), Queries("text", texts, np.full(40, NO_ID))]
    before = exact_neighbours(blocks_of(vectors[:2000], 500), kinds)
    save(before, tmp_path / "truth.npz")
    truths, earlier = load(tmp_path / "truth.npz"), Selection(np.ones(0, bool))
    for end, gone in ((2500, 0.05), (3000, 0.3)):  # twice: what was brought up to date is brought up again
        live = Selection(rng.random(end) >= gone)
        start = 2000 if end == 2500 else 2500
        added = [(np.arange(start, end)[live.flags[start:]], vectors[start:end][live.flags[start:]])]
        if end == 3000:
            live = Selection(live.flags & np.concatenate([earlier.flags, np.ones(500, bool)]))
        truths, earlier = brought_up(truths, added, live), live
        ids = live.ids
        anew = exact_neighbours([(ids, vectors[ids])], kinds)
        for ours, expected in zip(truths, anew, strict=True):
            width = ours.ids.shape[1]
            assert width >= DEPTHS[-1]
            assert gone == 0.3 or width > DEPTHS[-1] + SPARE // 2
            np.testing.assert_array_equal(ours.ids, expected.ids[:, :width])
            np.testing.assert_allclose(ours.scores, expected.scores[:, :width], rtol=1e-5)


def test_a_small_table_knows_all_neighbours_when_it_grows():
    vectors = made_up_vectors(60, 16)
    texts = made_up_vectors(5, 16, seed=1)
    kind = Queries("text", texts, np.full(5, NO_ID))
    before = exact_neighbours([(np.arange(40), vectors[:40])], [kind])
    live = Selection(np.arange(60) % 3 != 0)
    (after,) = brought_up(before, [(np.arange(40, 60), vectors[40:])], Selection(np.ones(60, bool)))
    (anew,) = exact_neighbours([(np.arange(60), vectors)], [kind])
    np.testing.assert_array_equal(after.ids, anew.ids)
    (fewer,) = brought_up([after], [], live)
    (anew,) = exact_neighbours([(live.ids, vectors[live.ids])], [kind])
    np.testing.assert_array_equal(fewer.ids, anew.ids)


def test_the_worse_kind_of_query_decides():
    """Texts lie where no image is: their neighbours are in many lists, and a few of them have none."""
    vectors = made_up_vectors(3000, 32)
    texts = made_up_vectors(150, 32, seed=9) + 2.0 * made_up_vectors(1, 32, seed=10)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    own = np.arange(0, 3000, 20)
    kinds = [Queries("image", vectors[own], own), Queries("text", texts, np.full(150, NO_ID))]
    truths = exact_neighbours(blocks_of(vectors, 1000), kinds)
    whole = index_of("IVF64,Flat", vectors)
    alone = [tune(whole, [truth], 0.9, 1)[0].nprobe for truth in truths]
    both, _ = tune(whole, truths, 0.9, 1)
    assert alone[0] != alone[1]
    assert abs(both.nprobe - max(alone)) <= 1  # bisection begins elsewhere
    assert both.recall_at_10.keys() == {"image", "text"}


def test_recall_is_stated_at_every_depth():
    vectors = made_up_vectors(3000, 32)
    truth = truth_of(vectors, np.arange(0, 3000, 20))
    exact = index_of("Flat", vectors)
    assert recall_by_depth(exact, truth) == {"1": 1.0, "10": 1.0, "100": 1.0}
    lossy = recall_by_depth(replace(index_of("IVF64,Flat", vectors), nprobe=2), truth)
    assert 1 > lossy["1"] > lossy["10"] > 0
    assert lossy["100"] > lossy["10"] / 2  # more lists are searched for more rows


def test_re_ranking_puts_back_what_codes_lose():
    vectors = made_up_vectors(3000, 32)
    index, truth = filled("IVF16,SQ4", vectors), truth_of(vectors, np.arange(0, 3000, 20))
    exact = Exact([vectors.astype(np.float16)])
    codes_only = measure(Index(index, exact), 16, None, [truth], 1).recall_at_10["image"]
    ranked_again = measure(Index(index, exact, rerank=4), 16, None, [truth], 1).recall_at_10["image"]
    assert codes_only < 0.97 < 0.99 <= ranked_again
