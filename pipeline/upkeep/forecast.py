"""What a backfill would do and take, before any work: the rows to embed, and the index of all that there will be then.

In: a `PlanConfig`. Out: an `Estimate` and an `IndexForecast`. Writes nothing.
"""

from dataclasses import dataclass

from pipeline.config import PlanConfig
from pipeline.embedding.estimate import Estimate, estimate
from pipeline.indexing.choose import check_mergeable, choose_factory, cost
from pipeline.machine import multiply_adds_per_s

# What a build of 10^5 and of 10^6 x 512 took beside multiplying, on two cores: Ray's start and tuning, and files read
# and written three times in all (jobs/BENCHMARKS.md).
START_S, BYTES_PER_S = 15.0, 2e8


@dataclass(frozen=True)
class IndexForecast:
    """An index built anew of all rows that the table will hold, on this machine."""

    index: str  # its key
    index_rows: int
    index_bytes: int  # that searching wants in memory
    index_vectors_bytes: int  # beside it on disk
    index_training_rows: int
    index_hours: float


def forecast(config: PlanConfig) -> tuple[Estimate, IndexForecast | None]:
    """Say what embedding and indexing would take; no forecast of an index of nothing.

    Raises:
        InputError: the source, the model or the table cannot be used as asked, or no index fits the memory budget.
    """
    found = estimate(config)
    rows, options = found.rows, config.index
    if not rows:
        return found, None
    key = check_mergeable(
        options.factory or choose_factory(rows, found.d, options.memory_budget, options.latency_budget_ms)
    )
    choice = cost(key, rows, found.d, options.queries)
    seconds = START_S + choice.seconds(multiply_adds_per_s(), BYTES_PER_S)
    return found, IndexForecast(
        index=key,
        index_rows=rows,
        index_bytes=choice.index_bytes,
        index_vectors_bytes=choice.vectors_bytes,
        index_training_rows=choice.training_rows,
        index_hours=round(seconds / 3600, 4),
    )
