"""How well a table answers golden queries: exactly, which is the model's doing, and by its index, which loses some.

In: golden queries, their vectors, an open index. Out: an `Evaluation`, both kept apart, and comparisons of several.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.analysis.golden import QUERY_ID, Golden
from pipeline.analysis.metrics import Values, ndcg, precision, recall, reciprocal_rank
from pipeline.analysis.significance import Difference, Interval, corrected, difference, interval
from pipeline.errors import InputError
from pipeline.indexing.exact import NO_ID
from pipeline.searching.index import OpenIndex

RECALLS = (1, 3, 5, 10)  # at which recall is stated, beside k
NAMED = 20  # missing rows that are named
WAY, NDCG_EXP = "way", "ndcg_exponential"
Way = Literal["exact", "indexed"]


@dataclass(frozen=True)
class Scores:
    """What one way of searching finds.

    Attributes:
        mean: by metric, as recall@10.
        per_query: query_id, cohorts, and every metric.
        cohorts: by column, value and metric.
    """

    mean: dict[str, Interval]
    per_query: pa.Table
    cohorts: dict[str, dict[str, dict[str, Interval]]]


@dataclass(frozen=True)
class Evaluation:
    """Golden queries, answered both ways.

    Attributes:
        relevant: rows that are right, over all queries.
        missing: how many of them the index does not hold; they count against recall, both ways.
        missing_ids: some of these.
    """

    table: str
    space: str
    index: str
    k: int
    kind: str
    queries: int
    relevant: int
    missing: int
    missing_ids: tuple[str, ...]
    exact: Scores
    indexed: Scores

    @property
    def per_query(self) -> pa.Table:
        """Every query twice, with its way of searching."""
        ways = [(name, scores.per_query) for name, scores in (("exact", self.exact), ("indexed", self.indexed))]
        return pa.concat_tables([rows.append_column(WAY, pa.repeat(name, rows.num_rows)) for name, rows in ways])

    @property
    def index_loss(self) -> dict[str, float]:
        """Say by metric how much the index loses of what the model's vectors would find."""
        return {name: self.exact.mean[name].mean - value.mean for name, value in self.indexed.mean.items()}

    def as_dict(self) -> dict[str, Any]:  # JSON's types
        """Give all but the values of single queries."""
        fields = {name: value for name, value in vars(self).items() if name not in ("exact", "indexed")}
        ways = {
            name: {
                "mean": {metric: asdict(value) for metric, value in scores.mean.items()},
                "cohorts": {
                    column: {
                        value: {metric: asdict(one) for metric, one in of_value.items()}
                        for value, of_value in of_column.items()
                    }
                    for column, of_column in scores.cohorts.items()
                },
            }
            for name, scores in (("exact", self.exact), ("indexed", self.indexed))
        }
        return {**fields, "missing_ids": list(self.missing_ids), **ways, "index_loss": self.index_loss}


def metric_names(k: int) -> tuple[str, ...]:
    """Name what is measured, in the order in which it is stated."""
    return (*(f"recall@{at}" for at in _cuts(k)), *(f"{name}@{k}" for name in ("precision", "mrr", "ndcg", NDCG_EXP)))


def evaluate(golden: Golden, xq: NDArray[np.float32], index: OpenIndex, k: int = 10, seed: int = 0) -> Evaluation:
    """Search for every golden query both ways, and measure what comes.

    By the index, every metric is of a search for as many rows as it is cut at: a search for 100 looks through more
    lists, and its first 10 would flatter what a search for 10 finds.

    Args:
        xq: the queries' vectors (n, d) of norm 1.
        k: at which metrics are cut; recall is also stated at 1, 3, 5 and 10.
        seed: of the intervals.

    Raises:
        InputError: as many vectors as queries were wanted, a k from 1 on, or cohorts of other names.
    """
    if len(xq) != len(golden) or k < 1:
        raise InputError(f"evaluate: wanted {len(golden)} vectors and k from 1 on, got {len(xq)} and {k}")
    if taken := {QUERY_ID, WAY, *metric_names(k)} & set(golden.cohorts):
        raise InputError(f"evaluate: a cohort cannot be called {', '.join(sorted(taken))}")
    relevant = golden.relevant
    numbers = _numbers({row_id for rows in relevant for row_id in rows}, index)
    missing = [row_id for rows in relevant for row_id in rows if row_id not in numbers]
    right = _Right(relevant, numbers, len(index.row_ids))
    exact = _found(right, xq, index, max(_cuts(k)), exact=True)
    # Without lists both ways are one.
    indexed = {at: _found(right, xq, index, at, exact=False) if index.index.nlist else exact for at in _cuts(k)}
    return Evaluation(
        table=index.card.table,
        space=index.card.space,
        index=index.card.version,
        k=k,
        kind=golden.kind,
        queries=len(golden),
        relevant=sum(len(rows) for rows in relevant),
        missing=len(missing),
        missing_ids=tuple(sorted(set(missing))[:NAMED]),
        exact=_scores(golden, dict.fromkeys(_cuts(k), exact), k, seed),
        indexed=_scores(golden, indexed, k, seed),
    )


def compare(
    baseline: Evaluation, others: Sequence[Evaluation], way: Way = "indexed", seed: int = 0
) -> list[dict[str, Difference]]:
    """Compare evaluations of the same queries with a baseline: for each, the differences by metric.

    Raises:
        InputError: they are of other queries, or another k.
    """
    found = [_compared(getattr(baseline, way), getattr(other, way), baseline, other, seed) for other in others]
    by_metric = {name: corrected([each[name] for each in found]) for name in metric_names(baseline.k)}
    return [{name: differences[number] for name, differences in by_metric.items()} for number in range(len(found))]


def _compared(
    theirs: Scores, ours: Scores, baseline: Evaluation, other: Evaluation, seed: int
) -> dict[str, Difference]:
    if theirs.per_query[QUERY_ID] != ours.per_query[QUERY_ID] or baseline.k != other.k:
        raise InputError(f"compare: {baseline.table} and {other.table} were asked other queries, or for another k")
    return {
        name: difference(ours.per_query[name].to_numpy(), theirs.per_query[name].to_numpy(), seed)
        for name in theirs.mean
    }


def _cuts(k: int) -> list[int]:
    return sorted({*RECALLS, k})


def _numbers(wanted: set[str], index: OpenIndex) -> dict[str, int]:
    """Find the vector ids of rows; those that the index cannot find have none."""
    is_wanted = pc.is_in(index.row_ids, value_set=pa.array(sorted(wanted), index.row_ids.type))
    numbers = np.flatnonzero(is_wanted.to_numpy())
    names = index.row_ids.filter(is_wanted).to_pylist()
    live = index.index.live
    return {
        name: number for name, number in zip(names, numbers.tolist(), strict=True) if live is None or live.flags[number]
    }


class _Right:
    """Which vector ids below ``end`` are right for which query, with their grades: one sorted key for each."""

    def __init__(self, relevant: Sequence[dict[str, float]], numbers: dict[str, int], end: int) -> None:
        held = [
            (query * end + numbers[row_id], grade)
            for query, rows in enumerate(relevant)
            for row_id, grade in rows.items()
            if row_id in numbers
        ]
        held.append((np.iinfo(np.int64).max, 0.0))  # past any other: there is always one to look at
        keys, grades = zip(*sorted(held), strict=True)
        self.end, self.keys, self.grades = end, np.array(keys, np.int64), np.array(grades)

    def grades_of(self, numbers: NDArray[np.int64]) -> Values:
        """Give the grades of what each query found (n, depth); 0 where it is wrong or nothing."""
        asked = np.arange(len(numbers))[:, None] * self.end + numbers
        places = np.searchsorted(self.keys, asked)
        return np.where((self.keys[places] == asked) & (numbers != NO_ID), self.grades[places], 0.0)


def _found(right: _Right, xq: NDArray[np.float32], index: OpenIndex, depth: int, *, exact: bool) -> Values:
    """Search: the grades (n, depth) of what is found, best first; fewer where the index has fewer rows."""
    _, numbers = index.search(xq, depth, exact=exact)
    return right.grades_of(numbers)


def _scores(golden: Golden, found: dict[int, Values], k: int, seed: int) -> Scores:
    """Measure what was found, by how many rows were looked for."""
    judged = [list(relevant.values()) for relevant in golden.relevant]
    relevant = np.array([len(grades) for grades in judged], np.int64)
    measured = [
        *(recall(grades, relevant, at) for at, grades in found.items()),
        precision(found[k], k),
        reciprocal_rank(found[k], k),
        ndcg(found[k], judged, k),
        ndcg(found[k], judged, k, "exponential"),
    ]
    values = dict(zip(metric_names(k), measured, strict=True))
    per_query = pa.table({QUERY_ID: golden.query_ids, **golden.cohorts, **values})
    cohorts = {}
    for column, of_queries in golden.cohorts.items():
        members = np.array(of_queries, object)
        cohorts[column] = {
            value: {name: interval(each[members == value], seed) for name, each in values.items()}
            for value in sorted(set(of_queries))
        }
    return Scores({name: interval(each, seed) for name, each in values.items()}, per_query, cohorts)
