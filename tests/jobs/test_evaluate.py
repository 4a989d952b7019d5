import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.flags import load
from pipeline.analysis.retrieval import Direction, Retrieval
from pipeline.config import EvaluateConfig
from pipeline.errors import IncompleteError, InputError
from pipeline.runs import new_run
from pipeline.upkeep.evaluation import Measured, _check_floors


@pytest.fixture(scope="module")
def golden(demo_rows: list[dict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        {"query_id": row["caption"], "query_text": row["caption"], "relevant_id": row["key"], "colour": row["colour"]}
        for row in demo_rows[1:30]
    ]
    unique = {(row["query_id"], row["relevant_id"]): row for row in rows}
    path = tmp_path_factory.mktemp("golden") / "golden.parquet"
    pq.write_table(pa.Table.from_pylist(list(unique.values())), path)
    return path


def test_what_was_measured_is_kept_with_the_run(demo_store: str, golden: Path, run_job: Callable):
    done = run_job(
        "jobs.evaluate", "--store", demo_store, "--golden", str(golden), "--cohorts", '["colour"]',
        "--captions", "caption", "--floor", "recall@10=0.5", "--floor", "text_to_image@10=0.5", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    folder = Path(demo_store) / "runs" / measured["run"]
    assert json.loads((folder / "evaluation.json").read_text())["golden"] == measured["golden"]
    rows = pq.read_table(folder / "per_query.parquet")
    assert rows.num_rows == 2 * measured["golden"]["queries"]
    assert set(rows["way"].to_pylist()) == {"exact", "indexed"}
    mean = pa.compute.mean(rows.filter(pa.compute.equal(rows["way"], "exact"))["recall@10"]).as_py()
    assert mean == pytest.approx(measured["golden"]["exact"]["mean"]["recall@10"]["mean"])
    assert set(measured["golden"]["exact"]["cohorts"]["colour"]) == set(rows["colour"].to_pylist())
    assert json.loads((folder / "run.json").read_text())["exit_status"] == 0


def test_a_floor_that_is_missed_ends_with_status_3_and_is_kept(demo_store: str, golden: Path, run_job: Callable):
    done = run_job(
        "jobs.evaluate",
        "--store",
        demo_store,
        "--golden",
        str(golden),
        "--floor",
        '["recall@10=0.1", "precision@10=1.0"]',
    )
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("jobs.evaluate:")]
    assert "table figures__" in line
    assert "below its floors: precision@10 0." in line
    assert "recall@10" not in line
    run = line.rpartition("(run ")[2].rstrip(")")
    assert json.loads((Path(demo_store) / "runs" / run / "run.json").read_text())["exit_status"] == 3
    assert (Path(demo_store) / "runs" / run / "evaluation.json").exists()


def test_a_floor_on_nothing_measured_is_a_mistake(demo_store: str, golden: Path, run_job: Callable):
    done = run_job("jobs.evaluate", "--store", demo_store, "--golden", str(golden), "--floor", "recall@11=0.1")
    assert done.returncode == 2
    assert "floor: recall@11 is not measured; there are mrr@10" in done.stderr
    assert not [path for path in Path(demo_store).glob("runs/*/run.json") if '"floor": ["recall@11' in path.read_text()]


def test_a_mean_that_was_rounded_below_its_floor_has_reached_it():
    assert np.full(3, 0.7).mean() < 0.7
    config = EvaluateConfig(store="s", captions="caption", floor=("text_to_image@1=0.7",))
    for recall, reached in ((float(np.full(3, 0.7).mean()), True), (0.6999, False)):
        direction = Direction({1: recall}, 1.0)
        measured = Measured("r", None, Retrieval(3, 3, direction, direction))
        with nullcontext() if reached else pytest.raises(IncompleteError, match=r"text_to_image@1 0\.6999 < 0\.7"):
            _check_floors(config, measured, new_run("jobs.evaluate", config))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "wanted --golden, --captions, or both"),
        (["--golden", "g", "--floor", "recall=0.9"], "wanted metric@k=0.9"),
        (["--golden", "g", "--floor", "recall@10=2"], "wanted metric@k=0.9"),
        (["--golden", "g", "--floor", "recall@10=x"], "wanted metric@k=0.9"),
        (["--golden", "g", "--floor", '["mrr@10=0.9", "mrr@10=0.5"]'], "wanted each metric once"),
    ],
)
def test_flags_that_make_no_sense_are_refused(arguments: list[str], said: str):
    with pytest.raises(InputError, match=said):
        load(EvaluateConfig, ["--store", "s", *arguments], "jobs.evaluate")
