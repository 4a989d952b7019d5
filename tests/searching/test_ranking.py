import numpy as np
import pytest

from pipeline.searching.ranking import diversified, one_of_each_group, without_near


def unit(rng: np.random.Generator, n: int, d: int = 8) -> np.ndarray:
    vectors = rng.standard_normal((n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_no_two_rows_that_stay_are_near_and_each_that_goes_is_near_to_a_better_one():
    rng = np.random.default_rng(0)
    some = unit(rng, 40)
    vectors = np.repeat(some, 3, axis=0) + 0.05 * rng.standard_normal((120, 8)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[rng.permutation(120)]
    kept = without_near(vectors, 120, 0.95)
    likeness = vectors @ vectors.T
    assert (likeness[np.ix_(kept, kept)] - np.eye(len(kept)) < 0.95).all()
    for place in set(range(120)) - set(kept.tolist()):
        assert (likeness[place, kept[kept < place]] >= 0.95).any()
    assert without_near(vectors, 5, 0.95).tolist() == kept[:5].tolist()
    assert without_near(vectors[:0], 5).tolist() == []


@pytest.mark.parametrize("diversity", [0.0, 0.3, 1.0])
def test_each_row_is_the_one_of_most_marginal_relevance(diversity: float):
    rng = np.random.default_rng(1)
    vectors = unit(rng, 30)
    scores = np.sort(rng.random(30).astype(np.float32))[::-1]
    chosen: list[int] = []
    for _ in range(12):
        worth = [
            -np.inf
            if place in chosen
            else (1 - diversity) * scores[place]
            - diversity * max((float(vectors[place] @ vectors[other]) for other in chosen), default=-1.0)
            for place in range(30)
        ]
        chosen.append(int(np.argmax(worth)))
    assert diversified(scores, vectors, 12, diversity).tolist() == chosen
    assert sorted(diversified(scores, vectors, 99, diversity).tolist()) == list(range(30))


def test_without_diversity_the_order_stays():
    scores = np.array([0.9, 0.5, 0.1], np.float32)
    assert diversified(scores, unit(np.random.default_rng(2), 3), 3, 0.0).tolist() == [0, 1, 2]


def test_the_best_of_each_connected_group_stays():
    angles = np.deg2rad([0, 10, 20, 30, 90, 100, 180])  # a chain of four, a pair, one alone
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    order = np.array([6, 3, 5, 0, 1, 2, 4])
    assert order[one_of_each_group(vectors[order], 0.98)].tolist() == [6, 3, 5]
    assert one_of_each_group(vectors[:0], 0.98).tolist() == []
