"""Embed rejects of some reasons again: `python -m jobs.redrive --config nightly.toml --reasons '["fetch_timeout"]'`."""

import sys

from jobs.embed import said
from jobs.launch import launch
from pipeline.config import RedriveConfig
from pipeline.upkeep.backfill import embed_only


def run(config: RedriveConfig) -> None:
    """Embed the units of these rejects again, and print the counts that close."""
    print(said(embed_only(config, "jobs.redrive", config.reasons)))


if __name__ == "__main__":
    sys.exit(launch(RedriveConfig, run, "jobs.redrive"))
