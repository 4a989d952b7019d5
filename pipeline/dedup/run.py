"""The duplicates job: find what joins rows, stage by stage, put rows into groups, choose what to keep, and record it.

In: a `DedupConfig`. Out: edges, groups and a report below `<store>/duplicates/<table>/<id>/`, and the card. The id is
made of the rows and the parameters: what is there already is not made again, and what was killed goes on from the
pieces that are whole.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from pipeline.config import DedupConfig, RunConfig
from pipeline.dedup import recall, record
from pipeline.dedup.edges import EMBEDDING, EXACT, Found, find_edges
from pipeline.dedup.groups import groups
from pipeline.dedup.keepers import keepers
from pipeline.dedup.pairs import Pairs, joined
from pipeline.dedup.plan import Plan, duplicates_folder, plan
from pipeline.dedup.record import Duplicates, Groups
from pipeline.dedup.report import render, thresholds
from pipeline.dedup.view import sheets
from pipeline.errors import IncompleteError
from pipeline.lease import Lease
from pipeline.runs import Run, write_run
from pipeline.store import Store
from pipeline.table import find_table

logger = logging.getLogger(__name__)


def find_duplicates(config: DedupConfig, run: Run | None = None) -> Duplicates:
    """Find the rows of a table that show the same picture; nothing to do if they were found with the same parameters.

    Args:
        run: where to note which table it is, and how long stages take.

    Raises:
        InputError: no such table or column, nothing published, or a table that has changed since its index was built.
        LeaseHeldError: duplicates of this table are being looked for already.
        IncompleteError: a file is missing or damaged, or the lease was lost; the same command goes on.
    """
    store = Store(config.store)
    store.check_writable(single_writer=config.single_writer)
    table = find_table(store, config.table)
    if run is not None:
        run.table = table
        write_run(store, run)
    with Lease(store, duplicates_folder(table)) as lease:
        planned = plan(config, store, table)
        card = _known(planned)
        if card is None:
            card = _made(planned, lease, run)
        store.remove_many([f"{planned.work}/{path}" for path in store.files(planned.work)], lease.check)
    logger.info(
        "duplicates=%s/%s rows=%d groups=%d dropped=%d recall=%s", card.table, card.id, card.rows, card.groups,
        card.dropped, card.recall and card.recall["share"],
    )  # fmt: skip
    return card


def _known(planned: Plan) -> Duplicates | None:
    """Read the card of the same rows and parameters; None where there is none, or a file of it is not whole."""
    card = record.read_card(planned.store, planned.folder)
    if card is None:
        return None
    with tempfile.TemporaryDirectory(prefix="rayclip-duplicates-") as scratch:
        try:
            record.check_files(planned.store, card, Path(scratch))
        except IncompleteError as error:
            logger.warning("duplicates=%s/%s made again: %s", card.table, card.id, error)
            return None
    logger.info("duplicates=%s/%s are known; nothing to do", card.table, card.id)
    return card


def _made(planned: Plan, lease: Lease, run: Run | None) -> Duplicates:
    """Go through all stages, and put what comes of it, the card last."""
    timer = _Timer(run)
    found = find_edges(planned, timer.stage)
    with timer.stage("groups"):
        rows = _grouped(planned, found)
    measured = None
    if EMBEDDING in found.stages:
        with timer.stage("recall"):
            measured = recall.measure(planned, _by_vectors(found))
    with timer.stage("report"), planned.store.scratch(planned.work) as place:
        record.write_edges(planned, found, place)
        record.write_groups(planned, found, rows, place)
        card = _card(planned, found, rows, measured, timer.seconds)
        _check_counts(card)
        (place / record.REPORT).write_text(render(card, found, sheets(planned, found, rows)), encoding="utf-8")
        lease.confirm()
        card = replace(card, sha256=record.put(planned, place))
    lease.confirm()
    record.write_card(planned.store, card)
    return card


def _grouped(planned: Plan, found: Found) -> Groups:
    ids, group = groups(found.edges(), planned.config.max_steps)
    kept = keepers(planned, ids, group)
    keeper = np.empty(int(kept.sum()), np.int64)
    keeper[group[kept]] = ids[kept]
    return Groups(ids, group, kept, record.similarity_to_keepers(planned, ids, keeper[group]))


def _by_vectors(found: Found) -> Pairs:
    """Give the pairs that vectors alone join, with those of equal bytes, whose copies were not compared."""
    near = found.stages[EMBEDDING]
    every = [near.pairs[near.pairs.similarity >= np.float32(near.least)]]
    return joined([*every, *([found.stages[EXACT].pairs] if EXACT in found.stages else [])])


def _card(
    planned: Plan, found: Found, rows: Groups, measured: recall.Recall | None, seconds: dict[str, float]
) -> Duplicates:
    card = planned.index.card
    return Duplicates(
        id=planned.id,
        table=planned.table,
        folder=planned.folder,
        index=card.version,
        space=card.space,
        parameters=planned.config.model_dump(mode="json", exclude=set(RunConfig.model_fields)),
        rows=len(planned.ids),
        alone=len(planned.ids) - len(rows.ids),
        grouped=len(rows.ids),
        groups=len(np.unique(rows.group)),
        keepers=int(rows.is_keeper.sum()),
        dropped=int((~rows.is_keeper).sum()),
        edges={name: int(stage.joins.sum()) for name, stage in found.stages.items()},
        counts=found.counts,
        thresholds=thresholds(planned, found),
        recall=None if measured is None else {**asdict(measured), "share": measured.share},
        seconds=seconds,
        sha256={},
    )


def _check_counts(card: Duplicates) -> None:
    closes = card.keepers == card.groups and card.keepers + card.dropped == card.grouped
    if not closes or card.alone + card.grouped != card.rows or card.alone < 0:
        raise RuntimeError(f"duplicates {card.table}/{card.id}: counts do not close: {asdict(card)}")


class _Timer:
    """Times stages, and notes them in a run's record if there is one."""

    def __init__(self, run: Run | None) -> None:
        self.run = run
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        began = time.monotonic()
        if self.run is None:
            yield
        else:
            with self.run.stage(name):
                yield
        self.seconds[name] = round(time.monotonic() - began, 2)
