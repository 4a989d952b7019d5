"""Publish the index version before the published one: `python -m jobs.rollback --store out/demo/store`."""

import sys

from jobs.build_index import said
from jobs.launch import launch
from pipeline.config import RollbackConfig
from pipeline.upkeep.versions import roll_back


def run(config: RollbackConfig) -> None:
    """Roll back, and print what was measured of the version that answers now."""
    print(said(roll_back(config)))


if __name__ == "__main__":
    sys.exit(launch(RollbackConfig, run, "jobs.rollback"))
