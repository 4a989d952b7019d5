"""Our metrics, compared with ir-measures, which is trec_eval's own code."""

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, P, R, nDCG

from pipeline.analysis.metrics import ndcg, precision, recall, reciprocal_rank

DEPTH = 20


def judged(seed: int, queries: int = 60) -> tuple[list[dict[str, int]], list[list[str]]]:
    """Grades of some rows, and rankings of fewer and more than DEPTH rows, some without any that is right."""
    rng = np.random.default_rng(seed)
    rows = [f"row-{number}" for number in range(50)]
    grades, rankings = [], []
    for query in range(queries):
        right = rng.choice(rows, int(rng.integers(1, 25)), replace=False)
        grades.append({str(row): int(rng.integers(0, 4)) for row in right})
        if not any(grades[-1].values()):
            grades[-1][str(right[0])] = 2
        depth = int(rng.integers(0, 40)) if query % 3 else DEPTH
        ranked = [str(row) for row in rng.permutation(rows)[:depth]]
        if query % 7 == 0:
            ranked = [row for row in ranked if grades[-1].get(row, 0) == 0]
        rankings.append(ranked)
    return grades, rankings


def theirs(metric: object, grades: list[dict[str, int]], rankings: list[list[str]]) -> np.ndarray:
    qrels = [ir_measures.Qrel(f"q{q}", row, grade) for q, of in enumerate(grades) for row, grade in of.items()]
    run = [
        ir_measures.ScoredDoc(f"q{q}", row, float(len(ranked) - rank))
        for q, ranked in enumerate(rankings)
        for rank, row in enumerate(ranked)
    ]
    found = {each.query_id: each.value for each in ir_measures.iter_calc([metric], qrels, run)}
    return np.array([found.get(f"q{q}", 0.0) for q in range(len(grades))])


def matrix(grades: list[dict[str, int]], rankings: list[list[str]]) -> np.ndarray:
    found = np.zeros((len(rankings), DEPTH))
    for query, ranked in enumerate(rankings):
        for rank, row in enumerate(ranked[:DEPTH]):
            found[query, rank] = grades[query].get(row, 0)
    return found


@pytest.mark.parametrize("k", [1, 3, 10, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_are_those_of_trec_eval(seed: int, k: int):
    grades, rankings = judged(seed)
    found = matrix(grades, rankings)
    right = [[grade for grade in of.values() if grade > 0] for of in grades]
    relevant = np.array([len(each) for each in right])
    ours = {
        R @ k: recall(found, relevant, k),
        P @ k: precision(found, k),
        RR @ k: reciprocal_rank(found, k),
        nDCG @ k: ndcg(found, right, k),
        nDCG(gains={1: 1, 2: 3, 3: 7}) @ k: ndcg(found, right, k, "exponential"),
    }
    for metric, values in ours.items():
        assert np.abs(values - theirs(metric, grades, rankings)).max() < 1e-9, str(metric)
        assert 0 < values.mean() < 1


def test_nothing_right_is_zero_and_all_right_is_one():
    found = np.array([[0.0, 0.0], [2.0, 1.0]])
    right, relevant = [[], [1.0, 2.0]], np.array([0, 2])
    for values in (recall(found, relevant, 2), precision(found, 2), ndcg(found, right, 2), reciprocal_rank(found, 2)):
        assert values.tolist() == [0.0, 1.0]
    none = np.zeros((3, 0))
    assert reciprocal_rank(none, 5).tolist() == [0.0] * 3
    assert ndcg(none, [[1.0]] * 3, 5).tolist() == [0.0] * 3
