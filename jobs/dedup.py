"""Find rows that show the same picture: `python -m jobs.dedup --store out/demo/store --threshold 0.95`."""

import sys

from jobs.launch import launch
from pipeline.config import DedupConfig
from pipeline.dedup.record import REPORT, Duplicates
from pipeline.dedup.run import find_duplicates
from pipeline.runs import new_run, recorded
from pipeline.stopping import Stopping
from pipeline.store import Store


def run(config: DedupConfig) -> None:
    """Find them, and print the counts that close."""
    store, noted = Store(config.store), new_run("jobs.dedup", config)
    stopping = Stopping(lambda: noted.at, config.deadline_s, config.hang_s, config.drain_s)
    with recorded(store, noted), stopping:
        card = find_duplicates(config, noted)
        noted.counts = {name: getattr(card, name) for name in ("rows", "alone", "grouped", "groups", "dropped")}
    print(said(card, store))


def said(card: Duplicates, store: Store) -> str:
    """Put a card into three lines."""
    edges = ", ".join(f"{stage} {count}" for stage, count in card.edges.items())
    share = None if card.recall is None else card.recall["share"]
    recall = "" if share is None else f"; recall of pairs by vectors {share:.4f}"
    return (
        f"rows {card.rows} = alone {card.alone} + in groups {card.grouped}\n"
        f"in groups {card.grouped} = kept {card.keepers} + dropped {card.dropped}; pairs: {edges}{recall}\n"
        f"report {store.url}/{card.folder}/{REPORT}"
    )


if __name__ == "__main__":
    sys.exit(launch(DedupConfig, run, "jobs.dedup"))
