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
from pipeline.analysis.significance import Difference, Interval, difference, interval
from pipeline.errors import InputError
from pipeline.indexing.exact import NO_ID
from pipeline.searching.index import OpenIndex

RECALLS = (1, 3, 5, 10)  # at which recall is stated, beside k
NAMED = 20  # missing rows that are named
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


def evaluate(golden: Golden, xq: NDArray[np.float32], index: OpenIndex, k: int = 10, seed: int = 0) -> Evaluation:
    """Search for every golden query both ways, and measure what comes.

    Args:
        xq: the queries' vectors (n, d) of norm 1.
        k: at which metrics are cut; recall is also stated at 1, 3, 5 and 10.
        seed: of the intervals.

    Raises:
        InputError: as many vectors as queries were wanted, and a k from 1 on.
    """
    if len(xq) != len(golden) or k < 1:
        raise InputError(f"evaluate: wanted {len(golden)} vectors and k from 1 on, got {len(xq)} and {k}")
    held = _held(golden, index)
    wanted = {row_id for relevant in golden.relevant for row_id in relevant}
    missing = sorted(wanted - held)
    return Evaluation(
        table=index.card.table,
        space=index.card.space,
        index=index.card.version,
        k=k,
        kind=golden.kind,
        queries=len(golden),
        relevant=sum(len(relevant) for relevant in golden.relevant),
        missing=sum(row_id not in held for relevant in golden.relevant for row_id in relevant),
        missing_ids=tuple(missing[:NAMED]),
        exact=_scores(golden, _found(golden, xq, index, k, exact=True), k, seed),
        indexed=_scores(golden, _found(golden, xq, index, k, exact=False), k, seed),
    )


def compare(
    baseline: Evaluation, others: Sequence[Evaluation], way: Way = "indexed", seed: int = 0
) -> list[dict[str, Difference]]:
    """Compare evaluations of the same queries with a baseline: for each, the differences by metric.

    Raises:
        InputError: they are of other queries, or another k.
    """
    return [_compared(getattr(baseline, way), getattr(other, way), baseline, other, seed) for other in others]


def _compared(
    theirs: Scores, ours: Scores, baseline: Evaluation, other: Evaluation, seed: int
) -> dict[str, Difference]:
    if theirs.per_query[QUERY_ID] != ours.per_query[QUERY_ID] or baseline.k != other.k:
        raise InputError(f"compare: {baseline.table} and {other.table} were asked other queries, or for another k")
    return {
        name: difference(ours.per_query[name].to_numpy(), theirs.per_query[name].to_numpy(), seed)
        for name in theirs.mean
    }


def _held(golden: Golden, index: OpenIndex) -> set[str]:
    """Find which of the rows that are right the index can find."""
    wanted = list({row_id for relevant in golden.relevant for row_id in relevant})
    kind = index.row_ids.type
    places = np.flatnonzero(pc.is_in(index.row_ids, value_set=pa.array(wanted, kind)).to_numpy())
    live = index.index.live
    if live is not None:
        places = places[live.flags[places]]
    return set(index.row_ids.take(pa.array(places)).to_pylist())


def _found(golden: Golden, xq: NDArray[np.float32], index: OpenIndex, k: int, *, exact: bool) -> Values:
    """Search: the grades (n, depth) of what is found, best first."""
    depth = max(k, *RECALLS)
    _, numbers = index.search(xq, depth, exact=exact)
    names = index.row_ids.take(pa.array(np.where(numbers == NO_ID, 0, numbers).ravel())).to_pylist()
    found = np.zeros((len(xq), depth))
    for query, judged in enumerate(golden.grades):
        for rank, number in enumerate(numbers[query]):
            if number != NO_ID:
                found[query, rank] = judged.get(names[query * numbers.shape[1] + rank], 0.0)
    return found


def _scores(golden: Golden, found: Values, k: int, seed: int) -> Scores:
    judged = [list(relevant.values()) for relevant in golden.relevant]
    relevant = np.array([len(grades) for grades in judged], np.int64)
    values = {f"recall@{at}": recall(found, relevant, at) for at in sorted({*RECALLS, k})}
    values[f"precision@{k}"] = precision(found, k)
    values[f"mrr@{k}"] = reciprocal_rank(found, k)
    values[f"ndcg@{k}"] = ndcg(found, judged, k)
    values[f"ndcg_exponential@{k}"] = ndcg(found, judged, k, "exponential")
    per_query = pa.table({QUERY_ID: golden.query_ids, **golden.cohorts, **values})
    cohorts = {}
    for column, of_queries in golden.cohorts.items():
        members = np.array(of_queries, object)
        cohorts[column] = {
            value: {name: interval(each[members == value], seed) for name, each in values.items()}
            for value in sorted(set(of_queries))
        }
    return Scores({name: interval(each, seed) for name, each in values.items()}, per_query, cohorts)
