"""A backfill and the endpoint on one small Ray, and all that its metrics port says meanwhile.

`python -m tests.cluster.exposing FOLDER PORT`, in a process of its own, since Ray passes metrics on every 10 s unless
told otherwise before it starts. Writes to FOLDER: exposed.json, by metric and label the values that were seen;
last.txt, what is there long after the backfill; and endpoint.txt, the endpoint's own /metrics.
"""

import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

os.environ["RAY_metrics_report_interval_ms"] = "1000"  # noqa: SIM112 - Ray's own spelling

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from prometheus_client.parser import text_string_to_metric_families

from jobs.demo.__main__ import figures
from pipeline import metrics
from pipeline.config import BackfillConfig, ServeConfig, SourceConfig
from pipeline.embedding import run
from pipeline.serving import app
from pipeline.upkeep.backfill import backfill
from tests.light import LightEncode

ROOT = Path(__file__).parent.parent.parent
FORGOTTEN_S = 3.0  # after which Ray has dropped a gauge that nobody says any more, at the interval above
# What comes last: of the three threads of a replica, of the proxy, of Ray's own look at the node.
LAST = {
    "ray_rayclip_step_seconds_bucket",
    "ray_rayclip_run_success_timestamp_seconds",
    "ray_rayclip_index_up_to_date_timestamp_seconds",
    "ray_serve_num_http_requests_total",
    "ray_node_disk_free",
}


class Scraper(threading.Thread):
    """Reads a node's metrics twice a second, and remembers every name, label and value."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        node = next(node for node in ray.nodes() if node["Alive"])
        self.url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        self.seen: dict[str, dict[str, set[str]]] = {}
        self.text = ""

    def run(self) -> None:
        while True:
            time.sleep(0.5)
            try:
                reply = httpx.get(self.url, timeout=10)
            except httpx.TransportError:  # the node's agent is about to start
                continue
            assert reply.headers["content-type"].startswith("text/plain; version="), (
                reply.headers
            )  # or no scrape at all
            self.text = reply.text
            for family in text_string_to_metric_families(self.text):
                for sample in family.samples:
                    labels = self.seen.setdefault(sample.name, {})
                    for label, value in sample.labels.items():
                        labels.setdefault(label, set()).add(value)


def main(folder: Path, port: int) -> None:
    """Run both, and write what they expose."""
    pq.write_table(pa.Table.from_pylist(list(figures(150, np.random.default_rng(5)))), folder / "figures.parquet")
    source = SourceConfig(name="figures", path=str(folder / "figures.parquet"), key_column="key")
    model, store = str(ROOT / "jobs" / "demo" / "model"), str(folder / "store")
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=256 << 20,
        include_dashboard=True,  # whose agent says how the node is
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    scraper = Scraper()
    scraper.start()
    metrics.REPEAT_S = 0.5
    run.dataflow = partial(run.dataflow, encode=LightEncode)
    backfill(BackfillConfig(store=store, table="watched", model=model, source=source, unit_rows=50))
    backfilled = time.monotonic()
    app.start(app.checked_app(ServeConfig(store=store, port=port)), "127.0.0.1", port)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        client.get("/v1/search", params={"q": "a red star"}).raise_for_status()
        client.get("/v1/rows/nothing")
        (folder / "endpoint.txt").write_text(client.get("/metrics").text)
    while not scraper.seen.keys() >= LAST or time.monotonic() < backfilled + FORGOTTEN_S:
        time.sleep(0.2)
    (folder / "last.txt").write_text(scraper.text)
    seen = {name: {label: sorted(values) for label, values in labels.items()} for name, labels in scraper.seen.items()}
    (folder / "exposed.json").write_text(json.dumps(seen))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
