"""Start a copy of a suspended RayJob on Kubernetes, once: `python -m jobs.submit_rayjob --id backfill-29384720`."""

import sys

from jobs.launch import launch
from pipeline.config import SubmitRayJobConfig
from pipeline.submitting.kubernetes import RayJobs
from pipeline.submitting.once import submit_once


def run(config: SubmitRayJobConfig) -> None:
    """Start it, wait for it, and end as it did."""
    print(submit_once(RayJobs(config), config.id, config.tries))


if __name__ == "__main__":
    sys.exit(launch(SubmitRayJobConfig, run, "jobs.submit_rayjob"))
