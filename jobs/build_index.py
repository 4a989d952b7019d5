"""Build, measure and publish a table's index: `python -m jobs.build_index --store out/demo/store`."""

import sys

from jobs.launch import launch
from pipeline.config import IndexConfig
from pipeline.indexing.run import build


def run(config: IndexConfig) -> None:
    """Build, and print what was measured."""
    card = build(config)
    recall = ", ".join(f"{kind} {value:.4f}" for kind, value in card.recall_at_10.items())
    print(
        f"index {card.table}/{card.version}: {card.factory}, {card.ntotal} vectors of {card.d}\n"
        f"recall@10 {recall} on {card.queries} held-out queries, nprobe {card.nprobe}, "
        f"{card.latency_ms:.2f} ms a query on one thread"
    )


if __name__ == "__main__":
    sys.exit(launch(IndexConfig, run, "jobs.build_index"))
