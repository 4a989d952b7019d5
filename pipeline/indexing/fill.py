"""Partials filled in parallel Ray tasks, each on one thread; those that have their receipt are not filled again.

A single one, of few rows, is filled here, on all processors: starting Ray would take as long again.
"""

import logging

import ray

from pipeline import compute
from pipeline.indexing import vectors
from pipeline.indexing.partial import Partial, fill, read_partial
from pipeline.indexing.plan import Plan
from pipeline.indexing.vectors import Span
from pipeline.machine import available_cpus
from pipeline.stopping import alive

logger = logging.getLogger(__name__)

LEAST_ROWS = 65_536  # of a partial that is an addition: fewer are filled before a task has started
MOST_ROWS = 4_000_000  # of a partial: what is done again when a task dies, and 2 GiB of 8-bit codes of 512


def fill_all(
    plan: Plan, spans: list[Span], trained: bytes, digest: str, folder: str, *, is_addition: bool = False
) -> list[Partial]:
    """Fill the lists of some units, as partials of about equal rows in ``folder``; fewer, if they only add to an index.

    Raises:
        IncompleteError: a file of the table is missing or damaged.
    """
    partials: list[Partial] = []
    groups: dict[str, list[Span]] = {}
    rows = vectors.count(spans)
    least = -(-rows // LEAST_ROWS) if is_addition else plan.config.partials
    parts = max(min(plan.config.partials, least), -(-rows // MOST_ROWS))
    for group in vectors.divide(spans, parts):
        place = f"{folder}/{group[0].base:012d}"
        if (done := read_partial(plan.store, place, group, digest)) is not None:
            partials.append(done)
        else:
            groups[place] = group
    logger.info("index=%s partials_done=%d to_fill=%d", plan.table, len(partials), len(groups))
    if parts == 1:
        source = (plan.store.url, plan.table_folder)
        return partials + [
            fill(*source, group, trained, digest, plan.record.d, place, available_cpus())
            for place, group in groups.items()
        ]
    return partials + (_filled(plan, groups, trained, digest) if groups else [])


def _filled(plan: Plan, groups: dict[str, list[Span]], trained: bytes, digest: str) -> list[Partial]:
    compute.start_ray()
    task, shared = ray.remote(fill).options(num_cpus=1), ray.put(trained)
    partials: list[Partial] = []
    waiting = [
        task.remote(plan.store.url, plan.table_folder, group, shared, digest, plan.record.d, place)
        for place, group in groups.items()
    ]
    while waiting:
        ready, waiting = ray.wait(waiting)
        partials += compute.get(ready)
        alive()
    return partials
