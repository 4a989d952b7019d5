"""Ask the demo's index three questions and draw what it finds: `python -m jobs.demo.show --store out/demo/store`."""

import sys
from pathlib import Path

from jobs.launch import launch
from pipeline.analysis.sheet import COLUMNS, contact_sheet
from pipeline.config import TableConfig
from pipeline.serving.service import Service

QUESTIONS = ("a red ring at the bottom left", "a small purple star", "a yellow circle on a black background")


class ShowConfig(TableConfig):
    """Ask the demo's index three questions: python -m jobs.demo.show."""

    sheet: str = "out/demo/hits.png"
    """Where the pictures found are drawn, a row for each question."""


def run(config: ShowConfig) -> None:
    """Print the top hits of each question and draw them."""
    service = Service(config.store, config.table)
    pictures = []
    for question in QUESTIONS:
        print(f"\n{question!r}")
        for hit in service.search(service.embed_text(question), COLUMNS).hits:
            print(f"  {hit.score:.3f}  {hit.id}  {hit.columns['caption']}")
            pictures.append((service.snapshot.pictures.of(hit.number), f"{hit.score:.3f} {hit.columns['caption']}"))
    sheet = Path(config.sheet)
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.write_bytes(contact_sheet(pictures, service.record.preprocess, "; ".join(QUESTIONS)))
    print(f"\nthe pictures are in {sheet}")


if __name__ == "__main__":
    sys.exit(launch(ShowConfig, run, "jobs.demo.show"))
