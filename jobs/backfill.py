"""Embed what is new, index it, publish, clear away what is old: `python -m jobs.backfill --config nightly.toml`."""

import sys

from jobs import build_index, embed
from jobs.launch import launch
from pipeline.config import BackfillConfig
from pipeline.upkeep.backfill import backfill


def run(config: BackfillConfig) -> None:
    """Run it all, and print what the table and its index now hold."""
    report, card = backfill(config)
    print(embed.said(report))
    print(build_index.said(card))


if __name__ == "__main__":
    sys.exit(launch(BackfillConfig, run, "jobs.backfill"))
