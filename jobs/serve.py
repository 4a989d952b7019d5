"""Serve a table's published index over HTTP: `python -m jobs.serve --store out/demo/store`."""

import signal
import sys
import threading

from ray import serve

from jobs.launch import launch
from pipeline.config import ServeConfig
from pipeline.serving.app import serve_table


def run(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    serve_table(config)
    stop = threading.Event()
    for ending in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own
        signal.signal(ending, lambda number, frame: stop.set())
    print(f"serving on http://{config.host}:{config.port}  (documentation: /docs)", flush=True)
    stop.wait()
    serve.shutdown()


if __name__ == "__main__":
    sys.exit(launch(ServeConfig, run, "jobs.serve"))
