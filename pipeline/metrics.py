"""The counters of a run for Prometheus, through Ray's own metrics: nothing here listens or writes.

In: rows as they are written. Out: `ray_rayclip_*` on the metrics port of the driver's node. Needs a connected Ray.
"""

from ray.util.metrics import Counter, Gauge


class Metrics:
    """Counts rows of one table by what became of them, and rejects by reason."""

    def __init__(self, table: str, planned: int, done: int) -> None:
        tags = {"table": table}
        self._rows = Counter("rayclip_rows", "Rows written in this run", ("table", "outcome"))
        self._rejects = Counter("rayclip_rejects", "Rows rejected in this run", ("table", "reason"))
        self._planned = Gauge("rayclip_rows_planned", "Rows of the source", ("table",))
        self._done = Gauge(
            "rayclip_rows_done", "Rows of the source that are written, by this run or before", ("table",)
        )
        for metric in (self._rows, self._rejects, self._planned, self._done):
            metric.set_default_tags(tags)
        self._planned.set(planned)
        self._total = done
        self._done.set(done)

    def add(self, embedded: int, reused: int, reasons: dict[str, int]) -> None:
        """Count rows that are written."""
        outcomes = {"encoded": embedded - reused, "reused": reused, "rejected": sum(reasons.values())}
        for outcome, rows in outcomes.items():
            if rows:
                self._rows.inc(rows, {"outcome": outcome})
        for reason, rows in reasons.items():
            self._rejects.inc(rows, {"reason": reason})
        self._total += embedded + outcomes["rejected"]
        self._done.set(self._total)
