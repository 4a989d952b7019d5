"""Publish an index version by name: `python -m jobs.publish --store out/demo/store --version <version>`."""

import sys

from jobs.build_index import said
from jobs.launch import launch
from pipeline.config import PublishConfig
from pipeline.upkeep.versions import publish_version


def run(config: PublishConfig) -> None:
    """Publish it, and print what was measured of it."""
    print(said(publish_version(config)))


if __name__ == "__main__":
    sys.exit(launch(PublishConfig, run, "jobs.publish"))
