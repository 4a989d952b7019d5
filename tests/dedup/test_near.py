from pathlib import Path

import numpy as np
import pytest

from pipeline.dedup import recall
from pipeline.dedup.near import near_vectors
from tests.dedup.conftest import planned, vectors_table
from tests.indexing.conftest import made_up_vectors

pytestmark = pytest.mark.usefixtures("local_ray")
NOTHING = np.empty(0, np.int64)


def with_copies(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    """Made-up vectors, a third of them turned a little away from another."""
    vectors, rng = made_up_vectors(n, d, seed), np.random.default_rng(seed)
    places, of = rng.permutation(n)[: n // 3], rng.integers(0, n, n // 3)
    vectors[places] = vectors[of] + rng.uniform(0, 0.06, (n // 3, 1)) * rng.standard_normal((n // 3, d)) / 2
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def slow_pairs(vectors: np.ndarray, floor: float) -> dict[tuple[int, int], float]:
    scores = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    return {(a, b): scores[a, b] for a, b in zip(*np.nonzero(np.triu(scores >= floor, 1)), strict=True)}


@pytest.mark.parametrize("factory", ["Flat", "IVF24,SQfp16", "IVF24,SQ8", "RR,IVF24,SQ8", "IVF24_HNSW8,Flat"])
def test_pairs_are_those_of_comparing_all_with_all(tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.dedup.near.PIECE_ROWS", 700)
    monkeypatch.setattr("pipeline.dedup.near.BLOCK_ROWS", 800)
    monkeypatch.setattr("pipeline.dedup.near.TILE_ROWS", 37)
    vectors = with_copies(2000)
    store = vectors_table(tmp_path / "s", vectors, factory)
    plan = planned(store, threshold=0.96, look_below=0.02)
    found, left_out = near_vectors(plan, NOTHING)
    slow = slow_pairs(vectors, 0.94)
    fast = dict(zip(zip(found.a.tolist(), found.b.tolist(), strict=True), found.similarity.tolist(), strict=True))
    sure = {pair for pair, score in slow.items() if score > 0.941}  # float16 rounds
    assert left_out == 0
    assert len(slow) > 300
    assert len(sure - set(fast)) <= (0 if factory == "Flat" else 0.01 * len(sure))
    assert all(slow.get(pair, 0.9395) == pytest.approx(score, abs=2e-3) for pair, score in fast.items())
    with_recall = recall.measure(plan, found[found.similarity >= 0.96])
    assert with_recall.rows == 1000
    assert with_recall.share is not None
    assert with_recall.share > 0.98


def test_recall_is_what_is_found_of_the_pairs_of_the_rows_drawn(tmp_path: Path):
    vectors = with_copies(600)
    plan = planned(vectors_table(tmp_path / "s", vectors), threshold=0.95, recall_rows=600)
    found, _ = near_vectors(plan, NOTHING)
    found = found[found.similarity >= 0.95]
    whole = recall.measure(plan, found)
    assert whole.found == whole.pairs == len(found)
    none = recall.measure(plan, found[:0])
    assert (none.found, none.share) == (0, 0.0)


def test_rows_with_one_vector_are_a_star_however_many(tmp_path: Path):
    vectors = np.repeat(made_up_vectors(1, 32), 3000, axis=0)
    plan = planned(vectors_table(tmp_path / "s", vectors, "Flat"))
    found, left_out = near_vectors(plan, NOTHING)
    assert len(found) == 2999
    assert left_out == 0
    assert not found.a.any()


def test_a_crowd_of_nearly_equal_rows_is_joined_without_all_its_pairs(tmp_path: Path):
    rng = np.random.default_rng(0)
    vectors = made_up_vectors(1, 32) + 0.01 * rng.standard_normal((2000, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    plan = planned(vectors_table(tmp_path / "s", vectors, "IVF4,SQfp16"))
    found, left_out = near_vectors(plan, NOTHING)
    assert len(found) < 2000 * 64 * 5
    assert left_out > 100_000
    assert len(np.unique(recall.components(found.a, found.b, 2000))) == 1


@pytest.mark.parametrize("rows", [1, 2])
def test_one_row_has_no_pairs_and_two_have_one_at_most(tmp_path: Path, rows: int):
    vectors = np.repeat(made_up_vectors(1, 32), rows, axis=0)
    plan = planned(vectors_table(tmp_path / "s", vectors))
    assert len(near_vectors(plan, NOTHING)[0]) == rows - 1
    assert len(near_vectors(plan, np.array([rows - 1]))[0]) == 0  # a copy of another is not compared
