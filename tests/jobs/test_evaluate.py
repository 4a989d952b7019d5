import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.flags import load
from pipeline.config import EvaluateConfig
from pipeline.errors import InputError


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
    assert "below its floors: precision@10 0." in line
    assert "recall@10" not in line
    run = line.rpartition("(run ")[2].rstrip(")")
    assert json.loads((Path(demo_store) / "runs" / run / "run.json").read_text())["exit_status"] == 3
    assert (Path(demo_store) / "runs" / run / "evaluation.json").exists()


def test_a_floor_on_nothing_measured_is_a_mistake(demo_store: str, golden: Path, run_job: Callable):
    done = run_job("jobs.evaluate", "--store", demo_store, "--golden", str(golden), "--floor", "recall@11=0.1")
    assert done.returncode == 2
    assert "floor: recall@11 was not measured; there are mrr@10" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "wanted --golden, --captions, or both"),
        (["--golden", "g", "--floor", "recall=0.9"], "wanted metric@k=0.9"),
        (["--golden", "g", "--floor", "recall@10=2"], "wanted metric@k=0.9"),
        (["--golden", "g", "--floor", "recall@10=x"], "wanted metric@k=0.9"),
    ],
)
def test_flags_that_make_no_sense_are_refused(arguments: list[str], said: str):
    with pytest.raises(InputError, match=said):
        load(EvaluateConfig, ["--store", "s", *arguments], "jobs.evaluate")
