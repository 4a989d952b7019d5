"""A whole run: embed what is pending, build and publish the index, clear away, and leave a record of it all.

In: a config. Out: a table and an index that agree, and `runs/<id>/` with run.json and report.html, however it ends.
With nothing new it reads receipts and ends. Composes the rooms below; knows no row.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial

from pipeline.analysis.findings import Findings, find
from pipeline.analysis.report import render
from pipeline.config import BackfillConfig, EmbedConfig, IndexConfig, RunConfig
from pipeline.embedding.run import Report, embed
from pipeline.embedding.texts import encode_texts
from pipeline.errors import RunError
from pipeline.filesystem import STORE_ERRORS, storage_named
from pipeline.indexing.choose import check_mergeable
from pipeline.indexing.plan import TextEncoder
from pipeline.indexing.publish import Card, index_folder
from pipeline.indexing.run import build, compact
from pipeline.lease import Lease
from pipeline.runs import RUN_FILE, Run, new_run, recorded, run_folder
from pipeline.schema import Reason
from pipeline.stopping import Stopping
from pipeline.store import Store
from pipeline.upkeep.vacuum import old_runs, old_versions, remove

logger = logging.getLogger(__name__)


def backfill(config: BackfillConfig) -> tuple[Report, Card]:
    """Embed what is pending, index what the table then holds, publish, and remove what nothing names any more.

    Rows that an earlier state of the source had leave the table and the index in one go: their files stay until the
    index without them is published.

    Raises:
        RunError: as `embed` and `build` say. What was committed stays, and the same command goes on.
    """
    store = Store(config.store)
    cards: list[Card] = []
    with _watched("jobs.backfill", config) as run:

        def index(table: str) -> None:
            try:
                with run.stage("index"):
                    cards.append(_build(index_config(config, table)))
                run.index = asdict(cards[-1])
            finally:  # versions that miss their recall pile up too
                with run.stage("clear"), Lease(store, index_folder(table)) as lease:
                    remove(store, old_versions(store, table, config.keep_versions), lease)
                    remove(store, old_runs(store, table, config.keep_runs), lease)

        if config.index.factory is not None:
            check_mergeable(config.index.factory)  # before hours of embedding, not after
        report = embed(config, run, config.redrive, index)
    return report, cards[-1]


def embed_only(config: EmbedConfig, job: str, again: Collection[Reason] = ()) -> Report:
    """Embed what is pending, or rejected for these reasons, and leave the index as it is."""
    with _watched(job, config) as run:
        return embed(config, run, again)


def build_only(config: IndexConfig) -> Card:
    """Build, measure and publish the index of a table as it is."""
    with _watched("jobs.build_index", config) as run, run.stage("index"):
        card = _build(config, run)
        run.index = asdict(card)
    return card


def compact_only(config: IndexConfig) -> Card:
    """Write the lists of the published index as one, measure and publish that."""
    with _watched("jobs.compact", config) as run, run.stage("index"):
        card = compact(config, run, _encoder(config))
        run.index = asdict(card)
    return card


def index_config(config: BackfillConfig, table: str) -> IndexConfig:
    """Give the index job's config for a backfill's table."""
    shared = {name: getattr(config, name) for name in RunConfig.model_fields}
    weights = {"model": config.model, "allow_pickle_weights": config.allow_pickle_weights}
    return IndexConfig(**{**shared, **config.index.model_dump(), **weights, "table": table})


def _build(config: IndexConfig, run: Run | None = None) -> Card:
    return build(config, run, _encoder(config))


def _encoder(config: IndexConfig) -> TextEncoder:
    return partial(encode_texts, model=config.model, allow_pickle_weights=config.allow_pickle_weights)


@contextmanager
def _watched(job: str, config: RunConfig) -> Iterator[Run]:
    """Record a run and end it where a limit is passed; write its report, however it ends."""
    store, run = Store(config.store), new_run(job, config)
    stopping = Stopping(lambda: run.at, config.deadline_s, config.hang_s, config.drain_s)
    try:
        with recorded(store, run), stopping, storage_named(lambda: f"stage {run.at}: "):
            yield run
    finally:
        _write_report(store, run, is_brief=stopping.has_stopped or not run.now.get("rows"))


def _write_report(store: Store, run: Run, *, is_brief: bool) -> None:
    """Write report.html; a run that was told to stop, or had nothing to do, does not look at pictures."""
    try:
        if run.table is None or not store.exists(f"{run_folder(run.id)}/{RUN_FILE}"):
            return
        findings = Findings() if is_brief else find(store, str(run.table), asdict(run))
        page = render(asdict(run), findings)
        store.replace(f"{run_folder(run.id)}/report.html", page.encode())
    except (RunError, RuntimeError, *STORE_ERRORS) as error:  # what ended the run is what should be heard
        logger.warning("run=%s has no report: %s", run.id, error)
