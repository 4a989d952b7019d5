"""The embed job: a source's pending units through the data flow, committed receipt by receipt, old states withdrawn.

In: an `EmbedConfig`. Out: a table's files, its receipts, and a `Report` whose counts close. Everything here says what
is pending before the data flow and what holds after it. A run that ends early leaves what it committed, and the same
command goes on from there.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.data import DataContext

from pipeline import compute
from pipeline.config import EmbedConfig
from pipeline.embedding.changes import (
    Job,
    again_units,
    check_removed,
    elders_of,
    first_rows,
    left_out_rows,
    note_source,
    withdraw,
)
from pipeline.embedding.dataflow import dataflow, pools_for, read_spec, steps_for
from pipeline.embedding.plan import cut, survey
from pipeline.embedding.read import UnitSource
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.record import agreed, new_record, space_of, table_name
from pipeline.embedding.shards import read_shards, write_shards
from pipeline.embedding.sources import remember_source
from pipeline.errors import IncompleteError, InputError
from pipeline.lease import Lease
from pipeline.metrics import Metrics
from pipeline.progress import Meter
from pipeline.runs import Run, brief, earlier_runs, new_run, run_folder, write_run
from pipeline.schema import Reason, counted_as_bad
from pipeline.store import Store
from pipeline.table import (
    Unit,
    read_record,
    reasons_of,
    table_folder,
    write_record,
)

logger = logging.getLogger(__name__)

NAMED = 5  # units, shards or rows that an error names; the report has them all


@dataclass(frozen=True)
class Report:
    """What a run did and what the table holds after it."""

    table: str
    space: str
    d: int
    units: int  # planned
    units_skipped: int  # of these, done before
    rows_in: int  # of planned units that are done
    embedded: int
    rejected: int
    reasons: dict[str, int]
    encoders: tuple[str, ...]  # what all vectors of these units were computed with
    rows_now: int  # of this run
    reused_now: int  # of these, whose vector was there already
    seconds: float
    steady_images_per_s: float  # after the first rows were written; 0 if there were no others


def embed(
    config: EmbedConfig,
    run: Run | None = None,
    again: Collection[Reason] = (),
    then: Callable[[str], None] | None = None,
) -> Report:
    """Embed what is pending of a source, commit it unit by unit, and leave nothing behind that no receipt names.

    Args:
        run: where to note what is found out.
        again: units with rejects of these reasons are pending once more.
        then: called with the table's name while it is leased, after the last receipt and before files go that none
            names any more: the place to build and publish an index in.

    Raises:
        InputError: the source, the model, the store or the table cannot be used as asked; nothing was encoded.
        LeaseHeldError: another run writes the table.
        IncompleteError: rows are missing, more were rejected than the config allows, or storage failed.
    """
    started = time.monotonic()
    run = run or new_run("embed", config)
    store = Store(config.store)
    with run.stage("plan"):
        space = space_of(config)
        run.table = table = table_name(config, space)
        run.model = {"id": space.checkpoint.model_id, "space": space.name, "d": space.d}
        run.model["sha256"] = space.checkpoint.sha256
        store.check_writable(single_writer=config.single_writer)
        known = read_shards(store, table_folder(table), config.source)
        found = survey(config.source, known)
        wanted = new_record(config, space, found)
        units = cut(found.shards, config.unit_rows)
    with Lease(store, table_folder(table)) as lease:
        with run.stage("plan"):
            stored = read_record(store, table)
            record = wanted if stored is None else agreed(table, stored, wanted)
            ledger = Ledger(store, table_folder(table), (shard.url for shard in found.shards), units, lease)
            ledger.retire_lost()
            job = Job(config, store, table, record, found, ledger, run)
            skipped = len(units) - len(ledger.pending)
            note_source(job)
            if stored is None and ledger.receipts:
                raise InputError(f"table {table}: has receipts but no table.json, which says what its rows are of")
            check_removed(job)
            ledger.again = again_units(job, again)
            pending = first_rows(ledger.pending, config.max_rows)
            logger.info(
                "table=%s space=%s shards=%d rows=%d units=%d units_skipped=%d units_pending=%d",
                table, record.space, len(found.shards), found.rows, len(units), skipped, len(pending),
            )  # fmt: skip
            left_out = left_out_rows(job) if pending else {}
        run.history = [brief(other) for other in earlier_runs(store, table)]
        run.source["snapshot"] = write_shards(
            store, table_folder(table), config.source, found, known, run_folder(run.id)
        )
        write_run(store, run)
        try:
            if pending:
                with run.stage("embed"):
                    _embed_units(job, pending, left_out, is_new=stored is None)
        finally:
            report = _report(job, skipped, time.monotonic() - started)
        _check_counts(report, job)
        withdraw(job)
        try:
            if then is not None:
                then(table)
        finally:  # an index that is refused keeps no row in the table
            with run.stage("clear"):
                ledger.remove_unnamed_files()
    _check_complete(job)
    return report


def _embed_units(job: Job, pending: list[Unit], left_out: dict[str, NDArray[np.int64]], *, is_new: bool) -> None:
    """Run the data flow over some units and commit them."""
    config, store, record, ledger = job.config, job.store, job.record, job.ledger
    compute.start_ray()
    compute.await_resources(config.wait.gpus, config.wait.cpus, config.wait.timeout_s)
    job.run.cluster = compute.totals()
    pools = pools_for(config, record, job.found)
    remember_source(store, config.source)
    store.replace_json(f"{job.folder}/config.json", config.model_dump(mode="json"))
    if is_new:
        write_record(store, job.table, record, job.run.versions)
    write_run(store, job.run)
    DataContext.get_current().execution_no_progress_timeout_s = config.hang_s
    source = UnitSource(pending, read_spec(config, record, job.found), left_out)
    steps = steps_for(config, store, job.table, record, job.found, pools.encoder_threads)
    done = job.found.rows - sum(unit.rows for unit in ledger.pending)
    now = {unit.id for unit in pending}
    before = reasons_of(r for r in ledger.receipts.values() if r.unit in ledger.units and r.unit not in now)
    _check_rejects(job, before)
    metrics = Metrics(job.table, job.found.rows, done, before, config.max_reject_fraction, ledger.lease.since_s)
    with Meter(done + sum(unit.rows for unit in pending), done) as meter, metrics:
        for part in _parts(dataflow(source, steps, pools, elders_of(job, pending))):
            ledger.add(part)
            if ledger.unreadable and config.source.bad_shards == "error":
                raise IncompleteError(f"table {job.table}: {min(ledger.unreadable.items())}")
            reasons = {entry["reason"]: entry["rows"] for entry in part["reasons"]}
            meter.add(part["rows"], reasons)
            metrics.add(part["embedded"], part["reused"], reasons)
            _check_rejects(job, before + meter.reasons)


def _parts(rows: ray.data.Dataset) -> Iterator[dict[str, Any]]:  # rows of schema.PART_SCHEMA
    """Yield what the data flow reports.

    Raises:
        IncompleteError: storage, memory or a node failed for good.
    """
    try:
        yield from rows.iter_rows()
    except Exception as error:
        failure = compute.named(error)
        if failure is None:
            raise
        raise failure from error


def _report(job: Job, skipped: int, seconds: float) -> Report:
    """Sum up what the planned units hold that are done."""
    ledger = job.ledger
    receipts = [ledger.receipts[unit] for unit in ledger.units if unit in ledger.receipts]
    report = Report(
        table=job.table,
        space=job.record.space,
        d=job.record.d,
        units=len(ledger.units),
        units_skipped=skipped,
        rows_in=sum(receipt.rows_in for receipt in receipts),
        embedded=sum(receipt.embedded for receipt in receipts),
        rejected=sum(receipt.rejected for receipt in receipts),
        reasons=dict(sorted(reasons_of(receipts).items())),
        encoders=tuple(sorted({encoder for receipt in receipts for encoder in receipt.encoders})),
        rows_now=ledger.rows_done,
        reused_now=ledger.rows_reused,
        seconds=round(seconds, 2),
        steady_images_per_s=ledger.images_per_s,
    )
    job.run.source["unreadable_units"] = dict(ledger.unreadable)
    counts = {"rows_in": report.rows_in, "embedded": report.embedded, "rejected": report.rejected}
    job.run.counts = {**counts, "reasons": report.reasons}
    job.run.now = {
        "rows": report.rows_now,
        "reused": report.reused_now,
        "bytes_written": ledger.bytes_written,
        "images_per_s": round(report.rows_now / max(seconds, 1e-9), 1),
        "steady_images_per_s": round(report.steady_images_per_s, 1),
    }
    logger.info(
        "table=%s rows_in=%d embedded=%d rejected=%d reasons=%s encoders=%s units_skipped=%d rows_now=%d reused=%d "
        "seconds=%.1f",
        job.table, report.rows_in, report.embedded, report.rejected, report.reasons, report.encoders,
        skipped, report.rows_now, report.reused_now, seconds,
    )  # fmt: skip
    return report


def _check_counts(report: Report, job: Job) -> None:
    """Hold the run to what it promises: every row of the source is accounted for, done or named as not done."""
    missing = sum(unit.rows for unit in job.ledger.units.values() if unit.id not in job.ledger.receipts)
    if report.rows_in + missing != job.found.rows or report.embedded + report.rejected != report.rows_in:
        raise RuntimeError(f"table {job.table}: {job.found.rows} rows planned, but counts do not close: {report}")
    _check_rejects(job, report.reasons)


def _check_rejects(job: Job, reasons: Mapping[str, int]) -> None:
    """Stop where too many rows are rejected; those that the source asked to leave out do not count."""
    limit = job.config.max_reject_fraction
    bad = counted_as_bad(reasons)
    if bad > limit * job.found.rows:
        raise IncompleteError(
            f"table {job.table}: {bad} of {job.found.rows} rows rejected {dict(sorted(reasons.items()))}, more than "
            f"max_reject_fraction {limit}; what was embedded stays"
        )


def _check_complete(job: Job) -> None:
    """Say what is missing, after everything else is done."""
    table, ledger = job.table, job.ledger
    if job.found.unreadable:
        raise IncompleteError(
            f"table {table}: {len(job.found.unreadable)} shards cannot be read and are left out, as "
            f"{_some(f'{url} ({why})' for url, why in job.found.unreadable.items())}"
        )
    if ledger.unreadable:
        raise IncompleteError(
            f"table {table}: {len(ledger.unreadable)} units cannot be read to their end and are left out, as "
            f"{_some(f'{unit} ({why})' for unit, why in ledger.unreadable.items())}"
        )
    if pending := ledger.pending:
        raise IncompleteError(
            f"table {table}: {len(pending)} units have no receipt, as {_some(unit.id for unit in pending)}; run the "
            "same command again"
        )


def _some(names: Iterator[str]) -> str:
    return ", ".join(name for name, _ in zip(names, range(NAMED), strict=False))
