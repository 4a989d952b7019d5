"""Partials filled in parallel Ray tasks, each on one thread; those that have their receipt are not filled again."""

import logging

import ray

from pipeline import compute
from pipeline.indexing import vectors
from pipeline.indexing.partial import Partial, fill, read_partial
from pipeline.indexing.plan import Plan
from pipeline.indexing.vectors import Span
from pipeline.stopping import alive

logger = logging.getLogger(__name__)

MOST_ROWS = 4_000_000  # of a partial: what is done again when a task dies, and 2 GiB of 8-bit codes of 512


def fill_all(plan: Plan, spans: list[Span], trained: bytes, digest: str, folder: str) -> list[Partial]:
    """Fill the lists of some units, as partials of about equal rows in ``folder``.

    Raises:
        IncompleteError: a file of the table is missing or damaged.
    """
    task = ray.remote(fill).options(num_cpus=1)
    shared = ray.put(trained)
    partials: list[Partial] = []
    waiting = []
    parts = max(plan.config.partials, -(-vectors.count(spans) // MOST_ROWS))
    for group in vectors.divide(spans, parts):
        place = f"{folder}/{group[0].base:012d}"
        if (done := read_partial(plan.store, place, group, digest)) is not None:
            partials.append(done)
            continue
        source = (plan.store.url, plan.table_folder, group)
        waiting.append(task.remote(*source, shared, digest, plan.record.d, place))
    logger.info("index=%s partials_done=%d to_fill=%d", plan.table, len(partials), len(waiting))
    while waiting:
        ready, waiting = ray.wait(waiting)
        partials += compute.get(ready)
        alive()
    return partials
