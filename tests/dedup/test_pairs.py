import numpy as np
import pytest

from pipeline.dedup.pairs import NO_PAIRS, joined, pairs, thinned


def as_dict(some) -> dict[tuple[int, int], float]:
    assert (some.a < some.b).all()
    return dict(zip(zip(some.a.tolist(), some.b.tolist(), strict=True), some.similarity.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_joined_pairs_are_each_there_once_with_the_best_similarity(seed: int):
    rng = np.random.default_rng(seed)
    parts, slow = [], {}
    for _ in range(3):
        one, other = rng.integers(0, 12, (2, 40))
        scores = rng.random(40, np.float32)
        parts.append(pairs(one, other, scores))
        for x, y, score in zip(one.tolist(), other.tolist(), scores.tolist(), strict=True):
            if x != y:
                key = (min(x, y), max(x, y))
                slow[key] = max(score, slow.get(key, 0.0))
    whole = joined(parts)
    assert as_dict(whole) == slow
    assert list(as_dict(whole)) == sorted(slow)
    assert len(whole) == len(slow)


def test_nothing_joined_is_nothing():
    assert len(joined([])) == len(joined([NO_PAIRS])) == 0
    assert thinned(NO_PAIRS, 4)[1] == 0


def test_a_crowded_row_keeps_its_best_pairs_and_the_one_with_the_smallest_id():
    one, other = np.triu_indices(60, 1)
    scores = np.random.default_rng(0).random(len(one)).astype(np.float32)
    kept, left_out = thinned(pairs(one, other, scores), 5)
    assert left_out == len(one) - len(kept)
    found, every = as_dict(kept), as_dict(pairs(one, other, scores))
    for row in range(60):
        mine = sorted((pair for pair in every if row in pair), key=lambda pair: -every[pair])
        assert set(mine[:5]) <= set(found)
        assert (0, row) in found or row == 0  # so that all stay joined
    again, _ = thinned(pairs(other[::-1], one[::-1], scores[::-1]), 5)
    assert as_dict(again) == found
