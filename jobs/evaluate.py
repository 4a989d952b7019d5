"""Measure what a table finds: `python -m jobs.evaluate --store S --golden queries.parquet --floor recall@10=0.9`."""

import json
import sys

from rich.console import Console
from rich.table import Table

from jobs.launch import launch
from pipeline.analysis.significance import Interval
from pipeline.config import EvaluateConfig
from pipeline.upkeep.evaluation import Measured, evaluation


def run(config: EvaluateConfig) -> None:
    """Measure, and print it: JSON for programs, tables for people."""
    measured = evaluation(config)
    if config.json_output:
        print(json.dumps(measured.as_dict()))
        return
    for table in tables(measured):
        Console().print(table)


def tables(measured: Measured) -> list[Table]:
    """Lay out what was measured."""
    found = []
    if (golden := measured.golden) is not None:
        title = f"{golden.table}, index {golden.index}: {golden.queries} queries by {golden.kind}"
        table = Table("metric", "exact", "indexed", title=title, caption=f"{golden.missing} relevant rows not in it")
        for name, exact in golden.exact.mean.items():
            table.add_row(name, said(exact), said(golden.indexed.mean[name]))
        found.append(table)
    if (captions := measured.captions) is not None:
        title = f"{captions.images} pictures, {captions.captions} captions"
        table = Table("recall@k", "text to image", "image to text", title=title)
        for k, value in captions.text_to_image.recall.items():
            table.add_row(str(k), f"{value:.4f}", f"{captions.image_to_text.recall[k]:.4f}")
        found.append(table)
    return found


def said(value: Interval) -> str:
    """Put a mean and its interval into a cell."""
    return f"{value.mean:.4f}" + ("" if value.low is None else f"  [{value.low:.4f}, {value.high:.4f}]")


if __name__ == "__main__":
    sys.exit(launch(EvaluateConfig, run, "jobs.evaluate"))
