"""Write an index's base and delta as one, without deleted rows: `python -m jobs.compact --store out/demo/store`."""

import sys

from jobs.build_index import said
from jobs.launch import launch
from pipeline.config import IndexConfig
from pipeline.upkeep.backfill import compact_only


def run(config: IndexConfig) -> None:
    """Compact, and print what was measured."""
    print(said(compact_only(config)))


if __name__ == "__main__":
    sys.exit(launch(IndexConfig, run, "jobs.compact"))
