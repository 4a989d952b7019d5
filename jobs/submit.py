"""Hand a job to a running Ray cluster, once: `python -m jobs.submit --id night-2026-11-25 --entrypoint "…"`."""

import sys

from jobs.launch import launch
from pipeline.config import SubmitConfig
from pipeline.submitting.job_server import JobServer
from pipeline.submitting.once import submit_once


def run(config: SubmitConfig) -> None:
    """Submit it, pass on what it prints, and end as it did."""
    print(submit_once(JobServer(config, lambda text: print(text, end="", flush=True)), config.id, config.tries))


if __name__ == "__main__":
    sys.exit(launch(SubmitConfig, run, "jobs.submit"))
