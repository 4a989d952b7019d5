"""Kill -9 of the driver at random moments, then the same command again: nothing lost, doubled or left over."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest
import ray

from pipeline.store import Store
from pipeline.table import read_receipts, table_folder
from tests.conftest import DEMO_MODEL, ROOT, encoded, write_shard

ROWS = 2000


@pytest.fixture
def command(tmp_path: Path, local_ray: None) -> list[str]:
    """Embed 2,000 rows of three shards, one of them with nulls, cut JPEGs and a text file posing as an image."""
    good = [encoded(i) for i in range(100)]
    for number, count in enumerate((700, 700, 600)):
        images: list[bytes | None] = [good[i % 100] for i in range(count)]
        if number == 1:
            images[10], images[20], images[30:33] = None, b"a text file", [good[i][:-100] for i in range(3)]
        write_shard(tmp_path / "corpus" / f"{number}.parquet", 700 * number, images, group_rows=50)
    flags = {
        "store": str(tmp_path / "store"),
        "table": "t",
        "model": str(DEMO_MODEL),
        "unit_rows": "50",
        "source.name": "s",
        "source.path": str(tmp_path / "corpus"),
        "source.key_column": "key",
    }
    return [sys.executable, "-m", "jobs.embed", *(part for name in flags for part in (f"--{name}", flags[name]))]


def start(command: list[str]) -> subprocess.Popen[str]:
    address = ray.get_runtime_context().gcs_address  # the driver dies, its cluster lives: as with `ray job submit`
    environment = {**os.environ, "RAY_ADDRESS": address}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kill_after_units(command: list[str], units: int) -> None:
    process = start(command)
    for line in process.stderr:
        units -= " unit=" in line
        if units <= 0:
            break
    process.kill()
    process.communicate()
    assert process.returncode == -9, "it had finished before it could be killed"


def test_every_row_exactly_once_after_any_number_of_deaths(command: list[str], tmp_path: Path):
    rng = random.Random(20261121)
    first = start(command)
    time.sleep(rng.uniform(3, 8))  # while it plans, starts actors or encodes: before its first commit or after
    first.kill()
    first.communicate()
    for _ in range(2):
        kill_after_units(command, rng.randint(1, 8))
    store = Store(str(tmp_path / "store"))
    committed = len(read_receipts(store, table_folder("t")))
    assert 2 <= committed < ROWS // 50

    last = start(command)
    out, log = last.communicate(timeout=120)
    assert last.returncode == 0, log[-3000:]
    assert f"rows in {ROWS} = embedded 1995 + rejected 5 {{'not_an_image': 1, 'null': 1, 'truncated': 3}}" in out
    assert int(re.search(r"units_skipped=(\d+) units_pending", log).group(1)) == committed

    table = tmp_path / "store" / table_folder("t")
    good = ds.dataset(table / "data", partitioning="hive").to_table()["_row_id"].to_pylist()
    bad = ds.dataset(table / "rejects", partitioning="hive").to_table()["_row_id"].to_pylist()
    keys = [f"row-{700 * number + i:05d}" for number, count in enumerate((700, 700, 600)) for i in range(count)]
    assert sorted(good + bad) == sorted(keys)
    assert duckdb.sql(f"SELECT count(*) FROM '{table}/data/**/*.parquet'").fetchall() == [(1995,)]
    receipts = read_receipts(store, table_folder("t")).values()
    named = {file.path for receipt in receipts for file in (*receipt.data, *receipt.rejects)}
    assert {str(path.relative_to(table)) for path in table.rglob("*.parquet")} == named

    started = time.monotonic()
    again = start(command)
    out, log = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "0 rows in" in out
    assert time.monotonic() - started < 15


def test_a_second_run_beside_the_first_exits_4(command: list[str]):
    first = start(command)
    for line in first.stderr:
        if "units_pending" in line:  # it holds the lease
            break
    second = start(command)
    _, said = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == 4
    assert f"held by process {first.pid}" in said
