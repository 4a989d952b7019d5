"""What is finished: one receipt per unit, written last, by the driver alone, and only when its counts close.

In: the units planned, and the parts that the write step reports (which rows of which unit lie in which files). Out:
receipts, and what is still pending. A file that no receipt names does not exist for anybody. Knows nothing of Ray.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pipeline.lease import Lease
from pipeline.store import TEMPORARY_SUFFIX, Store
from pipeline.table import File, Receipt, Unit, parse_receipt, read_receipts, receipt_path

logger = logging.getLogger(__name__)


class Ledger:
    """The receipts of one table, and the parts of the units that are not finished yet."""

    def __init__(self, store: Store, folder: str, shards: Iterable[str], units: Iterable[Unit], lease: Lease) -> None:
        self.store = store
        self.folder = folder
        self.lease = lease
        self.shards = set(shards)
        self.units = {unit.id: unit for unit in units}
        self.receipts = read_receipts(store, folder)
        self.skipped = self._done = len(self.units.keys() & self.receipts.keys())
        self._parts: dict[str, list[dict[str, Any]]] = {}  # rows of schema.PART_SCHEMA
        self._mark = time.monotonic()
        self._first: float | None = None  # when rows came first in this run, and last
        self._last = 0.0
        self._first_rows = self._rows = 0

    @property
    def pending(self) -> list[Unit]:
        """The planned units without a receipt, in the order of the plan."""
        return [unit for unit in self.units.values() if unit.id not in self.receipts]

    @property
    def images_per_s(self) -> float:
        """Give the mean rate of this run after its first rows: start-up is before them; 0 until there are more."""
        if self._first is None or self._last == self._first:
            return 0.0
        return (self._rows - self._first_rows) / (self._last - self._first)

    def add(self, part: dict[str, Any]) -> None:
        """Take note of rows that are written; commit their unit if they were its last.

        Raises:
            IncompleteError: the table's lease is lost.
            RuntimeError: rows came twice, or rows that the unit does not have.
        """
        self._count(part["rows"])
        unit = self.units[part["unit"]]
        parts = self._parts.setdefault(unit.id, [])
        parts.append(part)
        if sum(part["rows"] for part in parts) >= unit.rows:
            self._commit(unit, sorted(parts, key=lambda part: int(part["first_row"])))
            del self._parts[unit.id]

    def replaced(self) -> list[Receipt]:
        """Give receipts of earlier states of shards that are planned in their present state."""
        return [r for r in self.receipts.values() if r.unit not in self.units and r.shard in self.shards]

    def retire(self, receipt: Receipt) -> None:
        """Withdraw a receipt; its files are then unnamed."""
        self.lease.confirm()
        self.store.remove(receipt_path(self.folder, receipt.unit))
        del self.receipts[receipt.unit]

    def remove_unnamed_files(self) -> int:
        """Remove what attempts that died left behind, which no receipt names: how many files."""
        if not self._unnamed():
            return 0
        self.lease.confirm()
        self.receipts = read_receipts(self.store, self.folder)  # as they are, not as this run remembers them
        unnamed = self._unnamed()
        for path in unnamed:
            self.lease.check()
            self.store.remove(f"{self.folder}/{path}")
        return len(unnamed)

    def _unnamed(self) -> list[str]:
        named = {file.path for r in self.receipts.values() for file in (*r.data, *r.rejects)}
        found = [f"{kind}/{name}" for kind in ("data", "rejects") for name in self.store.files(f"{self.folder}/{kind}")]
        half = [f"receipts/{name}" for name in self.store.files(f"{self.folder}/receipts")]
        return [path for path in found if path not in named] + [
            path for path in half if path.endswith(TEMPORARY_SUFFIX)
        ]

    def _count(self, rows: int) -> None:
        self._rows += rows
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
        )
        _check_counts(receipt)
        self.lease.check()
        path = receipt_path(self.folder, unit.id)
        try:
            self.store.create(path, json.dumps(asdict(receipt), indent=1).encode())
        except FileExistsError:  # committed by a run that lost its lease meanwhile; its receipt counts
            receipt = parse_receipt(path, self.store.read(path))
        self._mark = now
        self.receipts[unit.id] = receipt
        self._done += 1
        logger.info(
            "unit=%s rows=%d rejects=%d seconds=%.2f images_per_s=%.1f units_done=%d units=%d",
            unit.id, unit.rows, receipt.rejected, receipt.seconds, self.images_per_s,
            self._done, len(self.units),
        )  # fmt: skip


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
