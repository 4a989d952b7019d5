"""Vectors that were made elsewhere become a table like any other: checked, normalised, committed unit by unit.

In: an `ImportConfig`. Out: what the embed job leaves: table.json, data/, rejects/, receipts whose counts close, so that
all that reads tables reads it. A run that ends early leaves what it committed, and the same call goes on. Threads read
and write units; only this thread commits them.
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.config import EmbedConfig, ImportConfig, SourceConfig
from pipeline.embedding.changes import Job, again_units, check_removed, left_out_rows, note_source, withdraw
from pipeline.embedding.plan import Survey, cut, survey
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.record import agreed
from pipeline.embedding.shards import read_shards, write_shards
from pipeline.embedding.sources import read_source, write_source
from pipeline.embedding.write import Write, WriteSpec
from pipeline.errors import IncompleteError, InputError
from pipeline.exchange.ahead import ahead
from pipeline.exchange.made_elsewhere import origin_of, record_of
from pipeline.exchange.take_in import LAYOUTS, TakeIn
from pipeline.filesystem import storage_named
from pipeline.lease import Lease
from pipeline.runs import Run, brief, earlier_runs, new_run, recorded, run_folder, write_run
from pipeline.schema import counted_as_bad
from pipeline.stopping import Stopping
from pipeline.store import Store
from pipeline.table import TableRecord, read_record, reasons_of, table_folder, write_record

logger = logging.getLogger(__name__)

THREADS = 4  # units in memory at a time: reading waits for storage, normalising for memory
FOOTER_THREADS = 16


@dataclass(frozen=True)
class Imported:
    """What became of a source's vectors."""

    table: str
    rows: int
    embedded: int
    rejected: dict[str, int]  # by reason
    dimensions: int
    space: str
    seconds: float


def import_embeddings(config: ImportConfig, run: Run | None = None) -> Imported:
    """Make a table of vectors, or go on with it; what its source has new, or no more, comes and goes.

    Args:
        run: where to note what is found out.

    Raises:
        InputError: the source, its vectors, the model or the table cannot be used as asked.
        LeaseHeldError: another run writes the table.
        IncompleteError: rows are missing, more were rejected than the config allows, or storage failed.
    """
    started = time.monotonic()
    store, run = Store(config.store), run or new_run("import_embeddings", config)
    stopping = Stopping(lambda: run.at, config.deadline_s, config.hang_s, config.drain_s)
    with recorded(store, run), stopping, storage_named(lambda: f"stage {run.at}: "):
        with run.stage("plan"):
            store.check_writable(single_writer=config.single_writer)
            origin = origin_of(config)
            run.table = table = config.table or _table_name(config, origin.space)
            run.model = {"id": origin.model_id, "space": origin.space, "d": config.dimensions}
            found = _survey(config, store, table)
        with Lease(store, table_folder(table)) as lease:
            with run.stage("plan"):
                job = _job(config, store, run, found, record_of(config, origin, found), lease)
                left_out = left_out_rows(job) if job.ledger.pending else {}
                _note(config, job)
            with run.stage("import"):
                _take_in(config, job, left_out)
            report = _report(job, time.monotonic() - started)
            withdraw(job)
            with run.stage("clear"):
                job.ledger.remove_unnamed_files()
        _check_complete(job)
    return report


def _table_name(config: ImportConfig, space: str) -> str:
    """Name a table as the embed job does; a source's captions are other rows than its pictures."""
    return f"{config.source.name}{'.texts' if config.texts else ''}__{space}"


def _survey(config: ImportConfig, store: Store, table: str) -> Survey:
    known = read_shards(store, table_folder(table), config.source)
    found = survey(config.source, known)
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        shards = tuple(pool.map(lambda shard: LAYOUTS[config.layout].with_state(shard, config), found.shards))
        new = [shard for shard in shards if shard != known.get(shard.url)]
        list(pool.map(lambda shard: LAYOUTS[config.layout].check_widths(shard, config), new))
    return replace(found, shards=shards)


def _job(config: ImportConfig, store: Store, run: Run, found: Survey, wanted: TableRecord, lease: Lease) -> Job:
    """Say what is pending of a table that is leased.

    Raises:
        InputError: the table has other rows than these, or its source has lost too many.
    """
    table = str(run.table)
    stored = read_record(store, table)
    record = wanted if stored is None else agreed(table, stored, wanted)
    units = cut(found.shards, config.unit_rows)
    ledger = Ledger(store, table_folder(table), (shard.url for shard in found.shards), units, lease)
    ledger.retire_lost()
    if stored is None and ledger.receipts:
        raise InputError(f"table {table}: has receipts but no table.json, which says what its rows are of")
    # Whoever asks what has changed asks a config for nothing but its source.
    asked = EmbedConfig(store=config.store, model=record.model, source=config.source)
    job = Job(asked, store, table, record, found, ledger, run)
    note_source(job)
    check_removed(job)
    ledger.again = again_units(job, ())
    return job


def _note(config: ImportConfig, job: Job) -> None:
    """Write down what the table is of, and that this run is at it."""
    store, run, source = job.store, job.run, config.source
    if read_source(store, source.name) is None:
        write_source(store, SourceConfig(**source.model_dump()))
    store.replace_json(f"{job.folder}/config.json", config.model_dump(mode="json"))
    if read_record(store, job.table) is None:
        write_record(store, job.table, job.record, run.versions)
    run.history = [brief(other) for other in earlier_runs(store, job.table)]
    known = read_shards(store, job.folder, source)
    run.source["snapshot"] = write_shards(store, job.folder, source, job.found, known, run_folder(run.id))
    write_run(store, run)


def _take_in(config: ImportConfig, job: Job, left_out: Mapping[str, NDArray[np.int64]]) -> None:
    """Write what is pending, and commit it unit by unit."""
    ledger, pending = job.ledger, job.ledger.pending
    logger.info(
        "table=%s space=%s shards=%d rows=%d units=%d units_pending=%d",
        job.table, job.record.space, len(job.found.shards), job.found.rows, len(ledger.units), len(pending),
    )  # fmt: skip
    now = {unit.id for unit in pending}
    reasons = reasons_of(r for r in ledger.receipts.values() if r.unit in ledger.units and r.unit not in now)
    spec = WriteSpec(
        store=job.store.url,
        folder=job.folder,
        source=config.source.name,
        model_id=job.record.model_id,
        d=config.dimensions,
        kept=job.found.kept,
        partition_by=(),
        content_hashes=False,
    )
    step = TakeIn(config, job.found.kept, Write(spec), left_out)
    for parts in ahead(step, pending, THREADS):
        for part in parts:
            ledger.add(part)
            reasons.update({entry["reason"]: entry["rows"] for entry in part["reasons"]})
        if ledger.unreadable and config.source.bad_shards == "error":
            raise IncompleteError(f"table {job.table}: {next(iter(ledger.unreadable.values()))}")
        _check_rejects(config, job, reasons)


def _check_rejects(config: ImportConfig, job: Job, reasons: Mapping[str, int]) -> None:
    """Stop where too many rows are rejected; those that the source asked to leave out do not count."""
    bad = counted_as_bad(reasons)
    if bad > config.max_reject_fraction * job.found.rows:
        raise IncompleteError(
            f"table {job.table}: {bad} of {job.found.rows} rows rejected {dict(sorted(reasons.items()))}, more than "
            f"max_reject_fraction {config.max_reject_fraction}; what was taken in stays"
        )


def _report(job: Job, seconds: float) -> Imported:
    """Sum up what the planned units hold that are done, and see that it closes."""
    ledger, run = job.ledger, job.run
    receipts = [ledger.receipts[unit] for unit in ledger.units if unit in ledger.receipts]
    report = Imported(
        table=job.table,
        rows=sum(receipt.rows_in for receipt in receipts),
        embedded=sum(receipt.embedded for receipt in receipts),
        rejected=dict(sorted(reasons_of(receipts).items())),
        dimensions=job.record.d,
        space=job.record.space,
        seconds=round(seconds, 2),
    )
    rejected = sum(report.rejected.values())
    missing = sum(unit.rows for unit in ledger.units.values() if unit.id not in ledger.receipts)
    if report.rows + missing != job.found.rows or report.embedded + rejected != report.rows:
        raise RuntimeError(f"table {job.table}: {job.found.rows} rows planned, but counts do not close: {report}")
    run.counts = {"rows_in": report.rows, "embedded": report.embedded, "rejected": rejected, "reasons": report.rejected}
    run.now = {
        "rows": ledger.rows_done,
        "reused": 0,
        "bytes_written": ledger.bytes_written,
        "images_per_s": round(ledger.rows_done / max(seconds, 1e-9), 1),
    }
    logger.info(
        "table=%s rows_in=%d embedded=%d rejected=%d reasons=%s rows_now=%d seconds=%.1f",
        job.table, report.rows, report.embedded, rejected, report.rejected, ledger.rows_done, seconds,
    )  # fmt: skip
    return report


def _check_complete(job: Job) -> None:
    """Say what is missing, after everything else is done."""
    left_out = {**job.found.unreadable, **job.ledger.unreadable}
    if left_out:
        name, why = min(left_out.items())
        raise IncompleteError(f"table {job.table}: {len(left_out)} shards or units are left out, as {name}: {why}")
    if pending := job.ledger.pending:
        raise IncompleteError(f"table {job.table}: {len(pending)} units have no receipt; make the same call again")
