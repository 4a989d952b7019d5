"""The counters of a run for Prometheus, through Ray's own metrics: nothing here listens or writes.

In: rows as they are written. Out: `ray_rayclip_*` on the metrics port of the driver's node. Needs a connected Ray. They
end with the driver: what is to be known of a run afterwards, an endpoint reads from the store (serving/watch.py).
"""

import threading
from collections.abc import Mapping
from types import TracebackType

from ray.util.metrics import Counter, Gauge

from pipeline.schema import counted_as_bad

REPEAT_S = 5.0  # Ray passes a gauge on once, and forgets it 20 s later: what does not move must be said again


class Metrics:
    """Counts rows of one table by what became of them, and rejects by reason, while inside ``with``."""

    def __init__(
        self, table: str, planned: int, done: int, before: Mapping[str, int], limit: float, since_s: float
    ) -> None:
        """Begin with what there is.

        Args:
            before: rejects of earlier runs that stay, by reason.
            limit: the share of rejects that ends the run.
            since_s: when the run took the lease of the table's embeddings, since 1970.
        """
        self._rows = Counter("rayclip_rows", "Rows written in this run", ("table", "outcome"))
        self._rejects = Counter("rayclip_rejects", "Rows rejected in this run", ("table", "reason"))
        self._planned = _gauge("rayclip_rows_planned", "Rows of the source", table)
        self._done = _gauge("rayclip_rows_done", "Rows of the source that are written, by this run or before", table)
        self._share = _gauge("rayclip_reject_fraction", "Rows rejected of the rows of the source", table)
        self._limit = _gauge("rayclip_reject_fraction_limit", "The share of rejects that ends a run", table)
        self._lease = Gauge(
            "rayclip_lease_since_timestamp_seconds", "When the lease was taken that is held", ("table", "folder")
        )
        for metric in (self._rows, self._rejects):
            metric.set_default_tags({"table": table})
        self._lease.set_default_tags({"table": table, "folder": "embeddings"})
        self.planned, self.done, self.bad = planned, done, counted_as_bad(before)
        self.limit, self.since_s = limit, since_s
        self._over = threading.Event()
        self._voice = threading.Thread(target=self._repeat, name="metrics", daemon=True)

    def __enter__(self) -> "Metrics":
        self._voice.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._voice.join()

    def add(self, embedded: int, reused: int, reasons: Mapping[str, int]) -> None:
        """Count rows that are written."""
        outcomes = {"encoded": embedded - reused, "reused": reused, "rejected": sum(reasons.values())}
        for outcome, rows in outcomes.items():
            if rows:
                self._rows.inc(rows, {"outcome": outcome})
        for reason, rows in reasons.items():
            self._rejects.inc(rows, {"reason": reason})
        self.done += embedded + outcomes["rejected"]
        self.bad += counted_as_bad(reasons)
        self._say()

    def _repeat(self) -> None:
        self._say()
        while not self._over.wait(REPEAT_S):
            self._say()

    def _say(self) -> None:
        self._planned.set(self.planned)
        self._done.set(self.done)
        self._share.set(self.bad / max(1, self.planned))
        self._limit.set(self.limit)
        self._lease.set(self.since_s)


def _gauge(name: str, says: str, table: str) -> Gauge:
    gauge = Gauge(name, says, ("table",))
    gauge.set_default_tags({"table": table})
    return gauge
