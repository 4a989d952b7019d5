"""What is planned and how a table stands, before, between and after runs; neither job writes anything."""

import json
from pathlib import Path

import pytest

from jobs import plan, status
from jobs.launch import launch
from pipeline.config import PlanConfig, StatusConfig
from pipeline.errors import IncompleteError
from pipeline.upkeep.backfill import backfill
from tests.conftest import encoded, write_shard
from tests.upkeep.test_backfill import config

pytestmark = pytest.mark.usefixtures("local_ray")


def said(capsys: pytest.CaptureFixture[str], model: type, job, *arguments: str) -> dict:
    assert launch(model, job.run, job.__name__, [*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def files(store: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_plan_and_status_say_what_is_left_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    corpus, store = tmp_path / "corpus", tmp_path / "store"
    for number in range(4):
        images: list[bytes | None] = [encoded(100 * number + i) for i in range(20)]
        images[number] = None
        write_shard(corpus / f"{number}.parquet", 20 * number, images, group_rows=10)
    given = config(corpus, unit_rows=10)
    flags = ["--store", str(store), "--table", "t", "--model", given.model, "--unit_rows", "10"]
    flags += ["--source.name", "s", "--source.key_column", "key", "--source.path", str(corpus)]

    planned = said(capsys, PlanConfig, plan, *flags, "--rows", "20")
    assert not store.exists()
    assert (planned["shards"], planned["rows"], planned["units"], planned["rows_pending"]) == (4, 80, 8, 80)
    assert planned["bytes"] == sum(path.stat().st_size for path in corpus.iterdir())
    assert 20 <= planned["trial"]["rows"] <= 40
    assert set(planned["trial"]["rejects"]) <= {"null"}
    assert planned["trial"]["images_per_s"] > 0
    seconds = planned["trial"]["start_s"] + 80 / planned["trial"]["images_per_s"]
    assert planned["hours"] * 3600 == pytest.approx(seconds, abs=5)
    assert planned["gpu_hours"] == 0
    assert (planned["index"], planned["index_rows"]) == ("Flat", 80)
    assert planned["index_bytes"] == 80 * planned["d"] * 4
    assert 0 < planned["index_hours"] < 0.1

    with pytest.raises(IncompleteError):
        backfill(given.model_copy(update={"max_rows": 50}))
    (corpus / "3.parquet").unlink()
    write_shard(corpus / "0.parquet", 0, [encoded(i) for i in range(20)], group_rows=10)
    before = files(store)
    planned = said(capsys, PlanConfig, plan, *flags, "--no-trial")
    assert (planned["units"], planned["units_pending"], planned["rows_pending"]) == (6, 3, 30)
    assert (planned["units_stale"], planned["units_removed"], planned["rejects"]) == (2, 0, {"null": 2})
    assert planned["trial"] is planned["hours"] is None

    stands = said(capsys, StatusConfig, status, "--store", str(store))
    assert (stands["rows"], stands["rows_done"], stands["units"], stands["units_pending"]) == (80, 50, 8, 3)
    assert (stands["embedded"], stands["rejected"], stands["reasons"]) == (47, 3, {"null": 3})
    assert stands["index"]["ntotal"] == 47
    assert stands["index"]["has_all_rows"]
    assert stands["writer"] is None
    assert [(run["exit_status"], run["now"]["rows"]) for run in stands["runs"]] == [(3, 50)]
    assert files(store) == before
