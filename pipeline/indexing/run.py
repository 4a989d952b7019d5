"""The index job: plan, then build anew or go on from what is published, and publish what passes.

In: an `IndexConfig`. Out: a published version and its card. What is read are the files that receipts named when the
build began: shards embedded meanwhile do not show, and one that is replaced meanwhile makes the build fail.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.config import IndexConfig
from pipeline.errors import IncompleteError, InputError
from pipeline.indexing import publish
from pipeline.indexing.build import build_anew
from pipeline.indexing.plan import Plan, TextEncoder, digest, plan, same_inputs
from pipeline.indexing.publish import Card
from pipeline.indexing.update import can_update, update
from pipeline.lease import Lease
from pipeline.runs import Run, write_run
from pipeline.store import Store
from pipeline.table import find_table

logger = logging.getLogger(__name__)


def build(config: IndexConfig, run: Run | None = None, encode_texts: TextEncoder | None = None) -> Card:
    """Build, measure and publish the index of a table; nothing to do if CURRENT was built from the same.

    Where most rows are those that the published version has, it is gone on from; if what comes of that misses the
    recall target, all is built anew.

    Args:
        run: where to note which table it is.
        encode_texts: gives the vectors (n, d) of texts in a table's space; None: recall by text is not measured, unless
            its queries are vectors already.

    Raises:
        InputError: no such table, no vectors in it, or a factory that cannot be used.
        LeaseHeldError: another build of this table's index is running.
        IncompleteError: a file is damaged, the merge does not verify, recall is below the target, or the same was built
            and withdrawn before.
    """
    store, table = _opened(config, run)
    with Lease(store, publish.index_folder(table)) as lease:
        planned = plan(config, store, table, encode_texts)
        current = _current(store, table)
        if not config.rebuild and current is not None and current.inputs == planned.inputs:
            logger.info("index=%s/%s ntotal=%d is current; nothing to do", table, current.version, current.ntotal)
            return current
        # One that was refused before, or not published for a crash:
        if not config.rebuild and (measured := same_inputs(planned)) is not None:
            _check_not_withdrawn(store, measured)
            lease.confirm()
            publish.publish(store, measured)
            return measured
        card = None
        if current is not None and not config.rebuild and can_update(planned, current):
            card = _updated(planned, current, lease)
        if card is None:
            card = _in_scratch(planned, lease, lambda scratch: build_anew(planned, lease, scratch), planned.inputs)
        lease.confirm()
        publish.publish(store, card)
    _log(card)
    return card


def compact(config: IndexConfig, run: Run | None = None, encode_texts: TextEncoder | None = None) -> Card:
    """Write the lists of the published version, and rows that are new, as one, without rows that are gone; publish it.

    Raises:
        InputError: nothing is published, or what is cannot be gone on from.
        LeaseHeldError: another build of this table's index is running.
        IncompleteError: a file is damaged, or recall is below the target.
    """
    store, table = _opened(config, run)
    with Lease(store, publish.index_folder(table)) as lease:
        current = _current(store, table)
        if current is None:
            raise InputError(f"table {table}: no index is published; run python -m jobs.build_index")
        planned = plan(config, store, table, encode_texts)
        if not can_update(planned, current):
            raise InputError(f"index {table}/{current.version}: cannot be gone on from; run python -m jobs.build_index")
        inputs = digest([planned.inputs, current.version])
        card = _in_scratch(
            planned, lease, lambda scratch: update(planned, current, lease, scratch, compact=True), inputs
        )
        publish.publish(store, card)
    _log(card)
    return card


def _opened(config: IndexConfig, run: Run | None) -> tuple[Store, str]:
    store = Store(config.store)
    store.check_writable(single_writer=config.single_writer)
    table = find_table(store, config.table)
    if run is not None:
        run.table = table
        write_run(store, run)
    return store, table


def _current(store: Store, table: str) -> Card | None:
    version = publish.read_current(store, table)
    return None if version is None else publish.read_card(store, table, version)


def _updated(planned: Plan, current: Card, lease: Lease) -> Card | None:
    """Go on from the published version; None if what comes of it does not find what it should."""
    inputs = digest([planned.inputs, current.version])
    card = _in_scratch(planned, lease, lambda scratch: update(planned, current, lease, scratch), inputs)
    try:
        publish.check_recall(card)
    except IncompleteError as error:
        logger.warning("%s; all is built anew", error)
        return None
    return card


def _in_scratch(planned: Plan, lease: Lease, made: Callable[[Path], Card], inputs: str) -> Card:
    """Make a version, with what a build of these inputs that died left behind, and nothing else that one left."""
    publish.remove_unfinished(planned.store, planned.table, lease, publish.build_folder(planned.table, inputs))
    with planned.store.scratch(publish.index_folder(planned.table)) as scratch:
        return made(scratch)


def _check_not_withdrawn(store: Store, card: Card) -> None:
    if publish.is_withdrawn(store, card):
        raise IncompleteError(
            f"index {card.table}/{card.version}: was built from these rows, and withdrawn; publish it with "
            f"python -m jobs.publish --version {card.version}, or build anew with --rebuild"
        )


def _log(card: Card) -> None:
    logger.info(
        "index=%s/%s factory=%s ntotal=%d nprobe=%s recall_at_10=%s latency_ms=%.2f seconds=%.1f",
        card.table, card.version, card.factory, card.ntotal, card.nprobe, card.recall_at_10, card.latency_ms,
        card.build_seconds,
    )  # fmt: skip
    if card.advice is not None:
        logger.warning("index=%s/%s advice=%s", card.table, card.version, card.advice)
