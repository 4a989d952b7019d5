"""Build, measure and publish a table's index: `python -m jobs.build_index --store out/demo/store`."""

import sys

from jobs.launch import launch
from pipeline.config import IndexConfig
from pipeline.indexing.publish import Card
from pipeline.upkeep.backfill import build_only


def run(config: IndexConfig) -> None:
    """Build, and print what was measured."""
    print(said(build_only(config)))


def said(card: Card) -> str:
    """Put a card into two lines."""
    recall = ", ".join(f"{kind} {value:.4f}" for kind, value in card.recall_at_10.items())
    queries = " and ".join(str(count) for count in card.queries.values())
    return (
        f"index {card.table}/{card.version}: {card.factory}, {card.ntotal} vectors of {card.d}\n"
        f"recall@10 {recall} on {queries} queries, nprobe {card.nprobe}, "
        f"{card.latency_ms:.2f} ms a query on one thread"
    )


if __name__ == "__main__":
    sys.exit(launch(IndexConfig, run, "jobs.build_index"))
