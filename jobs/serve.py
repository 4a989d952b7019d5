"""Serve a table's published index over HTTP: `python -m jobs.serve --store out/demo/store`."""

import os
import signal
import sys
import threading

from ray import serve

from jobs.launch import launch
from pipeline.compute import start_ray
from pipeline.config import ServeConfig
from pipeline.serving.app import checked_app, start


def run(config: ServeConfig) -> None:
    """Serve until SIGINT or SIGTERM."""
    app = checked_app(config)
    # Ray has its workers give way to everything else on a machine (niceness 15): what people wait for should not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    start_ray()
    stop = threading.Event()
    # After Ray has set its own, which abort a shutdown that takes over three seconds, and before anybody is answered.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, lambda number, frame: stop.set())
    start(app, config.host, config.port)
    print(f"serving on http://{config.host}:{config.port}  (API: /openapi.json)", flush=True)
    stop.wait()
    serve.shutdown()


if __name__ == "__main__":
    sys.exit(launch(ServeConfig, run, "jobs.serve"))
