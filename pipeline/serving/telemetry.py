"""What an endpoint counts, for Prometheus: requests, steps, refusals, versions, and how its tables stand in the store.

One process each, none of it shared. Knows nothing of Ray: app.py puts all of it on Ray's metrics port too.
"""

import time
from collections.abc import Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels = TypeVar("Labels", bound=tuple[str, ...])


class Telemetry:
    """The metrics of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("rayclip_requests", "Requests answered", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "rayclip_request_seconds", "From request to reply", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.step = Histogram(
            "rayclip_step_seconds", "Of a search, by step", ("step",), buckets=SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("rayclip_requests_in_flight", "Requests being answered", registry=self.registry)
        self.refused = Counter("rayclip_overload_refusals", "Requests refused at once", registry=self.registry)
        self.version = self._gauge("rayclip_index_serving", "1 for the version that answers", "table", "version")
        self.stale = self._gauge("rayclip_index_refused", "1 while a published version is not served", "table")
        # An age would stop growing with the thread that looks; a time goes on to be past, whatever it is that hangs.
        self.up_to_date = self._gauge(
            "rayclip_index_up_to_date_timestamp_seconds", "When what answers was last seen to be published", "table"
        )
        self.swaps = Counter("rayclip_index_swaps", "Versions taken over", ("table",), registry=self.registry)
        # As watch.py reads them in the store. index: "published", or "newest", which may have been refused.
        self.looked = self._gauge("rayclip_watch_timestamp_seconds", "When all below was last read from the store")
        self.recall = self._gauge("rayclip_index_recall", "Measured recall@10", "table", "index", "queries")
        self.recall_target = self._gauge("rayclip_index_recall_target", "Recall@10 that was asked", "table", "index")
        self.index_rows = self._gauge("rayclip_index_rows", "Rows that can be found", "table", "index")
        self.table_rows = self._gauge("rayclip_table_rows", "Rows with a vector, as the last run counted", "table")
        self.rejected = self._gauge("rayclip_reject_fraction", "Rows rejected of the source's, likewise", "table")
        self.reject_limit = self._gauge("rayclip_reject_fraction_limit", "The share that ends a run", "table")
        self.run_started = self._gauge(
            "rayclip_run_start_timestamp_seconds", "When the newest run started", "table", "command"
        )
        self.run_success = self._gauge(
            "rayclip_run_success_timestamp_seconds", "When a run last ended well; 0: none did", "table", "command"
        )
        self.run_status = self._gauge(
            "rayclip_run_exit_status", "Of the newest run that came to its end", "table", "command"
        )
        self.lease_since = self._gauge(
            "rayclip_lease_since_timestamp_seconds", "When the lease was taken that is held", "table", "folder"
        )

    def steps(self, milliseconds: Mapping[str, float]) -> None:
        """Count the steps of a request."""
        for name, value in milliseconds.items():
            self.step.labels(name).observe(value / 1e3)

    def serves(self, table: str, version: str, *, is_refusing: bool) -> None:
        """Note which version answers, and whether a published one does not."""
        put(self.version, table, {(version,): 1.0})
        self.stale.labels(table).set(float(is_refusing))
        if not is_refusing:
            self.up_to_date.labels(table).set(time.time())

    def text(self) -> bytes:
        """Write all of it as Prometheus reads it."""
        return generate_latest(self.registry)

    def series(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Give all of it, by name and labels, without the times at which counters began."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return Gauge(name, says, labels, registry=self.registry)


def put(gauge: Gauge, table: str, values: Mapping[Labels, float | None]) -> None:
    """Set a gauge for all that is known of a table, by the labels after it, and take away what is no more."""
    known = {(table, *labels): value for labels, value in values.items() if value is not None}
    for labels, value in known.items():
        gauge.labels(*labels).set(value)
    for there in list(gauge._metrics):
        if there[0] == table and there not in known:
            gauge.remove(*there)
