"""What a table does not have as the source has it: what is pending again, whose vectors can be used, what has to go.

In: a survey and the receipts. Out: units, rows to leave out, files of earlier states, receipts withdrawn. Runs nothing.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import schema
from pipeline.config import EmbedConfig
from pipeline.embedding.keys import Committed, KeyFile, duplicate_rows
from pipeline.embedding.plan import Survey
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.reuse import Elder
from pipeline.errors import InputError
from pipeline.runs import Run
from pipeline.schema import Reason
from pipeline.store import Store
from pipeline.table import Receipt, TableRecord, Unit, live_receipts, read_checked, table_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is being embedded, and into what."""

    config: EmbedConfig
    store: Store
    table: str
    record: TableRecord
    found: Survey
    ledger: Ledger
    run: Run

    @property
    def folder(self) -> str:
        """The table's folder below the store's root."""
        return table_folder(self.table)


def note_source(job: Job) -> None:
    """Note what the source has, and what of it the table does not have like that."""
    states: dict[str, set[str | None]] = {}
    for receipt in job.ledger.receipts.values():
        states.setdefault(receipt.shard, set()).add(receipt.state)
    shards = {shard.url: shard.state for shard in job.found.shards}
    finished = {unit.shard for unit in job.ledger.units.values() if unit.id in job.ledger.receipts}
    other = {url for url in shards.keys() & states.keys() if any(known != shards[url] for known in states[url])}
    job.run.source = {
        "shards": len(shards),
        "rows": job.found.rows,
        "bytes": sum(shard.bytes for shard in job.found.shards),
        "new": len(shards.keys() - states.keys()),
        "rewritten": len({url for url in other if url not in finished or len(states[url]) > 1}),
        "removed": len({receipt.shard for receipt in job.ledger.removed(job.found.unreadable)}),
        "unreadable": job.found.unreadable,
    }


def check_removed(job: Job) -> None:
    """Refuse a source that has lost so much that it is more likely to be listed wrongly."""
    known = {receipt.shard for receipt in job.ledger.receipts.values()}
    gone, limit = job.run.source["removed"], job.config.source.max_removed_fraction
    if _removes(job) and gone > limit * len(known):
        raise InputError(
            f"source {job.config.source.name}: {gone} of {len(known)} shards that the table has are not there any "
            f"more, more than source.max_removed_fraction {limit}; their rows would be removed"
        )


def again_units(job: Job, reasons: Collection[Reason]) -> set[str]:
    """Name the finished units to be written anew: those with such rejects, and where keys may be free again.

    A row that was left out because an earlier one had its key is wanted after all when that one's shard has changed.
    """
    ledger, wanted = job.ledger, set(reasons)
    is_removed = _removes(job) and bool(ledger.removed(job.found.unreadable))
    if job.config.source.key_column is not None and (job.run.source["rewritten"] or is_removed):
        wanted.add(Reason.DUPLICATE_KEY)
    receipts = (ledger.receipts[unit] for unit in ledger.units if unit in ledger.receipts)
    return {receipt.unit for receipt in receipts if wanted & receipt.reasons.keys()}


def first_rows(units: list[Unit], max_rows: int | None) -> list[Unit]:
    """Take whole units from the front, up to a number of rows, but at least one."""
    if max_rows is None:
        return units
    ends = np.cumsum([unit.rows for unit in units])
    return units[: max(1, int(np.searchsorted(ends, max_rows, side="right")))]


def left_out_rows(job: Job) -> dict[str, NDArray[np.int64]]:
    """Find the rows whose key an earlier row has, where what earlier runs committed is the earliest.

    Of shards that are done the table has the keys: they are not read again.
    """
    if job.config.source.key_column is None:
        return {}
    ledger = job.ledger
    receipts = [ledger.receipts[unit] for unit in ledger.units if unit in ledger.receipts]
    done = _done_shards(ledger)
    settled = [receipt for receipt in receipts if receipt.shard in done]
    receipts = [receipt for receipt in receipts if receipt.shard not in done]
    once = [receipt for receipt in receipts if receipt.unit not in ledger.again]
    twice = [receipt for receipt in receipts if receipt.unit in ledger.again]
    present = ledger.shards
    others = [r for r in live_receipts(ledger.receipts.values()).values() if r.shard not in present]
    if _removes(job):
        others = [receipt for receipt in others if receipt.shard in job.found.unreadable]
    committed = Committed(
        units=tuple(ledger.units[receipt.unit] for receipt in receipts),
        rejected=_rejected_rows(job, once, {Reason.DUPLICATE_KEY}),
        reopened=_rejected_rows(job, twice, set(Reason)),
        elsewhere=tuple(
            KeyFile(f"{job.store.url}/{job.folder}/{file.path}", file.rows, schema.ROW_ID, receipt.shard)
            for receipt, files in [*((r, r.data) for r in others), *((r, (*r.data, *r.rejects)) for r in settled)]
            for file in files
        ),
    )
    shards = tuple(shard for shard in job.found.shards if shard.url not in done)
    return duplicate_rows(job.config.source, shards, committed)


def _done_shards(ledger: Ledger) -> set[str]:
    """Name the shards with nothing pending, none of whose rows gave way to another of its key."""
    unsettled = {r.shard for r in ledger.receipts.values() if Reason.DUPLICATE_KEY in r.reasons}
    return ledger.shards - {unit.shard for unit in ledger.pending} - unsettled


def elders_of(job: Job, pending: list[Unit]) -> dict[str, tuple[Elder, ...]]:
    """Find, for the shards of pending units, the files that hold vectors of their earlier states."""
    ledger, shards = job.ledger, {unit.shard for unit in pending}
    elders: dict[str, list[Elder]] = {}
    for receipt in ledger.receipts.values() if job.record.content_hashes else ():
        if receipt.shard in shards and (receipt.unit not in ledger.units or receipt.unit in ledger.again):
            elders.setdefault(receipt.shard, []).extend(Elder(file, receipt.encoders) for file in receipt.data)
    return {shard: tuple(files) for shard, files in elders.items()}


def withdraw(job: Job) -> None:
    """Withdraw receipts of earlier states of shards, and of removed shards where the source says so."""
    ledger = job.ledger
    duplicates = [r for r in ledger.receipts.values() if Reason.DUPLICATE_KEY in r.reasons]
    if ledger.again or any(receipt.shard in job.found.unreadable for receipt in duplicates):
        logger.info("table=%s rows that gave way to others of their key wait; no receipt is withdrawn", job.table)
        return  # or the next run could not tell that they may be wanted after all
    old = ledger.replaced() + (ledger.removed(job.found.unreadable) if _removes(job) else [])
    ledger.retire(old)
    if old:
        logger.info("table=%s units_withdrawn=%d", job.table, len(old))


def _rejected_rows(job: Job, receipts: list[Receipt], reasons: set[Reason]) -> dict[str, NDArray[np.int64]]:
    """Read which rows were rejected for these reasons, by shard."""
    found: dict[str, list[pa.ChunkedArray]] = {}
    for receipt in receipts:
        for file in receipt.rejects if reasons & receipt.reasons.keys() else ():
            rejects = read_checked(job.store, job.folder, file)
            rows = rejects.filter(pc.is_in(rejects[schema.REJECT_REASON], pa.array(sorted(reasons), pa.string())))
            found.setdefault(receipt.shard, []).append(rows[schema.REJECT_ROW])
    return {shard: np.concatenate(rows) for shard, rows in found.items()}


def _removes(job: Job) -> bool:
    return job.config.source.removed_shards == "remove"
