"""What an endpoint counts, for Prometheus: requests, steps, refusals, versions. One process each, none of it shared."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


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
        self.version = Gauge(
            "rayclip_index_serving", "1 for the version that answers", ("table", "version"), registry=self.registry
        )
        self.stale = Gauge(
            "rayclip_index_refused", "1 while a published version is not served", ("table",), registry=self.registry
        )
        self.swaps = Counter("rayclip_index_swaps", "Versions taken over", ("table",), registry=self.registry)

    def steps(self, milliseconds: Mapping[str, float]) -> None:
        """Count the steps of a request."""
        for name, value in milliseconds.items():
            self.step.labels(name).observe(value / 1e3)

    def serves(self, table: str, version: str, *, is_refusing: bool) -> None:
        """Note which version answers, and whether a published one does not."""
        for labels in list(self.version._metrics):
            if labels[0] == table and labels[1] != version:
                self.version.remove(*labels)
        self.version.labels(table, version).set(1)
        self.stale.labels(table).set(float(is_refusing))

    def text(self) -> bytes:
        """Write all of it as Prometheus reads it."""
        return generate_latest(self.registry)
