"""What is finished: one receipt per unit, written last, by the driver alone, and only when its counts close.

In: the units planned, and the parts that the write step reports (which rows of which unit lie in which files). Out:
receipts, and what is still pending. A file that no receipt names does not exist for anybody. A receipt is withdrawn
when another state of its shard is written to the last unit, or the shard is gone. Knows nothing of Ray.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from pipeline.errors import IncompleteError, storage_failed
from pipeline.lease import Lease
from pipeline.seal import seal
from pipeline.stopping import alive
from pipeline.store import TEMPORARY_SUFFIX, Store
from pipeline.table import File, Receipt, Unit, parse_receipt, read_receipts, receipt_path

logger = logging.getLogger(__name__)

KINDS = ("data", "rejects", "receipts")  # the folders of a table


class Ledger:
    """The receipts of one table, and the parts of the units that are not finished yet."""

    def __init__(self, store: Store, folder: str, shards: Iterable[str], units: Iterable[Unit], lease: Lease) -> None:
        self.store = store
        self.folder = folder
        self.lease = lease
        self.shards = set(shards)
        self.units = {unit.id: unit for unit in units}
        self.receipts = read_receipts(store, folder)
        self.again: set[str] = set()  # units to be written anew though they have a receipt
        self.unreadable: dict[str, str] = {}  # units that could not be read in this run, and why
        self.rows_done = self.rows_reused = self.bytes_written = 0  # in this run
        # Receipts of the first format do not name the state that they are of. Those of planned units are of this one.
        self._stateless: dict[str, list[str]] = {}
        for receipt in self.receipts.values():
            if receipt.state is None and receipt.unit in self.units:
                self._stateless.setdefault(receipt.shard, []).append(receipt.unit)
        self._parts: dict[str, list[dict[str, Any]]] = {}  # rows of schema.PART_SCHEMA
        self._mark = time.monotonic()
        self._first: float | None = None  # when rows came first in this run, and last
        self._last = 0.0
        self._first_rows = 0

    @property
    def pending(self) -> list[Unit]:
        """The planned units without a receipt, then those to be written again, in the order of the plan."""
        first = [unit for unit in self.units.values() if unit.id not in self.receipts]
        return first + [unit for unit in self.units.values() if unit.id in self.again]

    @property
    def images_per_s(self) -> float:
        """Give the mean rate of this run after its first rows: start-up is before them; 0 until there are more."""
        if self._first is None or self._last == self._first:
            return 0.0
        return (self.rows_done - self._first_rows) / (self._last - self._first)

    def add(self, part: dict[str, Any]) -> None:
        """Take note of rows that are written, or cannot be read; commit their unit if they were its last.

        Raises:
            IncompleteError: the table's lease is lost, or rows could not be written.
            RuntimeError: rows came twice, or rows that the unit does not have.
        """
        unit = self.units[part["unit"]]
        if part["failed"] is not None:
            raise storage_failed(part["failed"], f"unit {unit.id}: ")
        if part["unreadable"] is not None:
            self.unreadable[unit.id] = part["unreadable"]
            logger.warning("unit=%s unreadable=%s", unit.id, part["unreadable"])
            return
        alive()
        self._count(part["rows"])
        self.rows_reused += part["reused"]
        self.bytes_written += sum(file["bytes"] for kind in ("data", "rejects") for file in part[kind])
        parts = self._parts.setdefault(unit.id, [])
        parts.append(part)
        if sum(part["rows"] for part in parts) >= unit.rows:
            self._commit(unit, sorted(parts, key=lambda part: int(part["first_row"])))
            del self._parts[unit.id]

    def replaced(self) -> list[Receipt]:
        """Give receipts of earlier states of shards whose present state is written to the last unit."""
        unfinished = {unit.shard for unit in self.units.values() if unit.id not in self.receipts}
        present = self.shards - unfinished
        return [r for r in self.receipts.values() if r.unit not in self.units and r.shard in present]

    def removed(self, unreadable: Iterable[str]) -> list[Receipt]:
        """Give receipts of shards that the source does not have any more; those that cannot be read it has."""
        present = self.shards | set(unreadable)
        return [receipt for receipt in self.receipts.values() if receipt.shard not in present]

    def retire(self, receipts: list[Receipt]) -> None:
        """Withdraw receipts; their files are then unnamed."""
        self.store.remove_many([receipt_path(self.folder, receipt.unit) for receipt in receipts], self.lease.confirm)
        for receipt in receipts:
            del self.receipts[receipt.unit]

    def retire_lost(self) -> None:
        """Withdraw receipts that name a file which is not there, so that their units are pending."""
        if lost := incomplete(table_files(self.store, self.folder), self.receipts.values()):
            logger.warning("table=%s units_lost=%d as=%s: files are missing", self.folder, len(lost), lost[0].unit)
            self.retire(lost)

    def remove_unnamed_files(self) -> int:
        """Remove what attempts that died left behind, which no receipt names: how many files.

        Raises:
            IncompleteError: a file that a receipt names is not there.
        """
        found = table_files(self.store, self.folder)
        if lost := incomplete(found, self.receipts.values()):
            raise IncompleteError(
                f"{self.folder}: files of {len(lost)} units are missing, as of {lost[0].unit}; run the same command "
                "again to embed them once more"
            )
        if not unnamed(found, self.receipts.values()):
            return 0
        self.lease.confirm()
        self.receipts = read_receipts(self.store, self.folder)  # as they are, not as this run remembers them
        extra = unnamed(table_files(self.store, self.folder), self.receipts.values())
        self.store.remove_many([f"{self.folder}/{path}" for path in extra], self.lease.check)
        logger.info("table=%s unnamed_files_removed=%d", self.folder, len(extra))
        return len(extra)

    def _replace(self, receipt: Receipt) -> None:
        self.store.replace(receipt_path(self.folder, receipt.unit), seal(asdict(receipt)))
        self.receipts[receipt.unit] = receipt

    def _check_fence(self, receipt: Receipt) -> None:
        """Take a receipt back that was written too late: whoever took over may have removed its files before.

        Raises:
            IncompleteError: the lease was lost while the receipt was on its way.
        """
        try:
            self.lease.check()
        except IncompleteError:
            if any(not self.store.exists(f"{self.folder}/{file.path}") for file in (*receipt.data, *receipt.rejects)):
                self.store.remove(receipt_path(self.folder, receipt.unit))
            raise

    def _count(self, rows: int) -> None:
        self.rows_done += rows
        self._last = time.monotonic()
        if self._first is None:
            self._first, self._first_rows = self._last, rows

    def _commit(self, unit: Unit, parts: list[dict[str, Any]]) -> None:
        _check_tiling(unit, parts)
        now = time.monotonic()
        reasons: Counter[str] = Counter()
        for part in parts:
            reasons.update({entry["reason"]: entry["rows"] for entry in part["reasons"]})
        receipt = Receipt(
            unit=unit.id,
            shard=unit.shard,
            first_row=unit.first_row,
            first_group=unit.first_group,
            groups=unit.groups,
            rows_in=unit.rows,
            embedded=sum(part["embedded"] for part in parts),
            rejected=sum(part["rejected"] for part in parts),
            reasons=dict(sorted(reasons.items())),
            encoders=tuple(sorted({encoder for part in parts for encoder in part["encoders"]})),
            data=tuple(File(**file) for part in parts for file in part["data"]),
            rejects=tuple(File(**file) for part in parts for file in part["rejects"]),
            seconds=round(now - self._mark, 3),
            state=unit.state,
            shard_rows=unit.shard_rows,
            lease=self.lease.number,
            reused=sum(part["reused"] for part in parts),
        )
        _check_counts(receipt)
        self.lease.check()
        for name in self._stateless.pop(unit.shard, ()):  # or they would seem to be of another state than this unit
            self._replace(replace(self.receipts[name], state=unit.state, shard_rows=unit.shard_rows))
        path = receipt_path(self.folder, unit.id)
        if unit.id in self.again:
            self.again.remove(unit.id)
            before = self.receipts[unit.id]
            if receipt.embedded < before.embedded:  # as where a server has lost images since
                logger.warning(
                    "unit=%s stays as it was: %d rows then, %d now", unit.id, before.embedded, receipt.embedded
                )
                return
            self._replace(receipt)
        else:
            try:
                self.store.create(path, seal(asdict(receipt)))
            except FileExistsError:  # committed by a run that lost its lease meanwhile; its receipt counts
                receipt = parse_receipt(path, self.store.read(path))
        self._mark = now
        self.receipts[unit.id] = receipt
        self._check_fence(receipt)
        logger.info(
            "unit=%s rows=%d rejects=%d reused=%d seconds=%.2f images_per_s=%.1f",
            unit.id, unit.rows, receipt.rejected, receipt.reused, receipt.seconds, self.images_per_s,
        )  # fmt: skip


def table_files(store: Store, folder: str) -> dict[str, int]:
    """List the data, rejects and receipts of a table's folder: bytes by path below it."""
    return {f"{kind}/{path}": size for kind in KINDS for path, size in store.files(f"{folder}/{kind}").items()}


def unnamed(found: dict[str, int], receipts: Iterable[Receipt]) -> dict[str, int]:
    """Choose the files that no receipt names, and receipts half written."""
    named = {file.path for receipt in receipts for file in (*receipt.data, *receipt.rejects)}
    return {
        path: size
        for path, size in found.items()
        if (path.endswith(TEMPORARY_SUFFIX) if path.startswith("receipts/") else path not in named)
    }


def incomplete(found: dict[str, int], receipts: Iterable[Receipt]) -> list[Receipt]:
    """Choose the receipts that name a file which is not there."""
    return [r for r in receipts if any(file.path not in found for file in (*r.data, *r.rejects))]


def _check_tiling(unit: Unit, parts: list[dict[str, Any]]) -> None:
    """Refuse rows that are missing or came twice: the parts, in order, must cover the unit without a gap."""
    expected = unit.first_row
    for part in parts:
        if part["first_row"] != expected:
            raise RuntimeError(f"unit {unit.id}: rows up to {expected} written, then rows from {part['first_row']}")
        expected += part["rows"]
    if expected != unit.first_row + unit.rows:
        raise RuntimeError(f"unit {unit.id}: {unit.rows} rows planned, written up to {expected - unit.first_row}")


def _check_counts(receipt: Receipt) -> None:
    in_files = (sum(f.rows for f in receipt.data), sum(f.rows for f in receipt.rejects))
    counted = (receipt.embedded, receipt.rejected)
    if sum(counted) != receipt.rows_in or in_files != counted or sum(receipt.reasons.values()) != receipt.rejected:
        raise RuntimeError(f"unit {receipt.unit}: counts do not close: {receipt}")
