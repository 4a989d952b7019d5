"""An evaluation as a run: measured, kept beside run.json, and held to floors.

In: a config. Out: `evaluation.json` and `per_query.parquet` in the run's folder, and an error that names every floor
that was missed.
"""

import io
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.analysis.evaluate import Evaluation, metric_names
from pipeline.analysis.golden import read_golden
from pipeline.analysis.quality import caption_quality, golden_quality
from pipeline.analysis.retrieval import KS, Retrieval
from pipeline.config import EvaluateConfig
from pipeline.errors import IncompleteError, InputError
from pipeline.runs import Run, new_run, recorded, run_folder, write_run
from pipeline.searching.catalog import Catalog
from pipeline.store import Store
from pipeline.table import find_table

FILE, PER_QUERY = "evaluation.json", "per_query.parquet"
DIRECTIONS = ("text_to_image", "image_to_text")
ROUNDING = 1e-9  # of a mean: that of three times 0.7 is 0.6999999999999998


@dataclass(frozen=True)
class Measured:
    """What was measured, and where it is kept."""

    run: str
    golden: Evaluation | None
    captions: Retrieval | None

    def as_dict(self) -> dict[str, Any]:  # JSON's types
        """Give all but the values of single queries."""
        parts = {"golden": self.golden, "captions": self.captions}
        return {"run": self.run, **{name: part.as_dict() for name, part in parts.items() if part is not None}}

    def values(self, way: str) -> dict[str, float]:
        """Give what floors may be on, by metric: of golden queries one way, of captions by direction."""
        found: dict[str, float] = {}
        if self.golden is not None:
            found |= {name: value.mean for name, value in getattr(self.golden, way).mean.items()}
        if self.captions is not None:
            for name in DIRECTIONS:
                recall = getattr(self.captions, name).recall
                found |= {f"{name}@{k}": value for k, value in recall.items()}
        return found


def evaluation(config: EvaluateConfig) -> Measured:
    """Measure a table, keep what came out, and hold it to the floors.

    Raises:
        InputError: the queries or the table cannot be used, or a floor is on what was not measured.
        IncompleteError: a floor was missed; what was measured is kept.
    """
    store = Store(config.store)
    _check_measured(config)
    golden = None if config.golden is None else read_golden(config.golden, config.cohorts)
    run = new_run("jobs.evaluate", config)
    run.table = find_table(store, config.table)
    models = {} if config.model is None else {Catalog(store, {}).record(run.table).model: config.model}
    catalog = Catalog(store, models, allow_pickle_weights=config.allow_pickle_weights)
    try:
        table = catalog.open(run.table)
        with recorded(store, run):
            write_run(store, run)
            with run.stage("evaluate"):
                found = None if golden is None else golden_quality(table, golden, config.k, config.seed)
                captions = None if config.captions is None else caption_quality(table, config.captions)
                measured = Measured(run.id, found, captions)
            _keep(store, run, measured)
            _check_floors(config, measured, run)
    finally:
        catalog.close()
    return measured


def _keep(store: Store, run: Run, measured: Measured) -> None:
    folder = run_folder(run.id)
    store.replace_json(f"{folder}/{FILE}", measured.as_dict())
    if measured.golden is not None:
        written = io.BytesIO()
        pq.write_table(measured.golden.per_query, written)
        store.replace(f"{folder}/{PER_QUERY}", written.getvalue())


def _check_measured(config: EvaluateConfig) -> None:
    """Check that floors are on what will be measured, before it is."""
    of_golden = () if config.golden is None else metric_names(config.k)
    of_captions = () if config.captions is None else [f"{name}@{k}" for name in DIRECTIONS for k in KS]
    measured = {*of_golden, *of_captions}
    if unknown := sorted(set(config.floors) - measured):
        raise InputError(f"floor: {', '.join(unknown)} is not measured; there are {', '.join(sorted(measured))}")


def _check_floors(config: EvaluateConfig, measured: Measured, run: Run) -> None:
    values = measured.values(config.floor_of)
    missed = [
        f"{name} {values[name]:.4f} < {least:g}"
        for name, least in config.floors.items()
        if values[name] < least - ROUNDING
    ]
    if missed:
        raise IncompleteError(f"table {run.table}: below its floors: {'; '.join(missed)} (run {run.id})")
