"""Search a published index: `python -m jobs.query --store out/demo/store --text "a red star" --sheet out/star.png`."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.launch import launch
from pipeline.analysis.sheet import contact_sheet
from pipeline.config import QueryConfig
from pipeline.errors import InputError
from pipeline.serving.problems import QueryError
from pipeline.serving.service import Answer, Service


def run(config: QueryConfig) -> None:
    """Search, print what was found, and draw the contact sheet if one is wanted."""
    service = Service(config.store, config.table, config.model, allow_pickle_weights=config.allow_pickle_weights)
    try:
        if config.text is not None:
            vector = service.embed_text(config.text)
        elif config.image is not None:
            vector = service.embed_image(service.fetch_image(config.image))
        else:
            vector = service.vector_of_row(str(config.id))
    except QueryError as error:
        raise InputError(str(error)) from error
    answer = service.search(vector, config.k)
    print_answer(answer, as_json=config.json_output)
    if config.sheet is not None:
        asked = config.text or config.image or config.id or ""
        pictures = [
            (
                service.snapshot.pictures.of(hit.number),
                " ".join([f"{hit.score:.3f}", hit.id, *map(str, hit.columns.values())]),
            )
            for hit in answer.hits
        ]
        Path(config.sheet).parent.mkdir(parents=True, exist_ok=True)
        Path(config.sheet).write_bytes(contact_sheet(pictures, service.record.preprocess, asked))


def print_answer(answer: Answer, *, as_json: bool) -> None:
    """Print rows found, as JSON for programs or as a table for people."""
    if as_json:
        hits = [{"id": hit.id, "score": hit.score, **hit.columns} for hit in answer.hits]
        print(json.dumps({"index_version": answer.index_version, "space": answer.space, "hits": hits}, default=str))
        return
    names = list(dict.fromkeys(name for hit in answer.hits for name in hit.columns))
    table = Table("score", "id", *names, title=f"index {answer.index_version}")
    for hit in answer.hits:
        table.add_row(f"{hit.score:.4f}", hit.id, *(str(hit.columns.get(name, "")) for name in names))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(launch(QueryConfig, run, "jobs.query"))
