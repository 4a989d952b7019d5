"""A driver that is told to stop, and two at once; those that are killed without a word are in test_soak.py."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pytest
import ray

from pipeline.lease import holder
from pipeline.runs import earlier_runs
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


def test_sigterm_commits_what_ends_in_time_and_the_same_command_goes_on(command: list[str], tmp_path: Path):
    first = start([*command, "--drain_s", "1"])
    log = []
    for line in first.stderr:
        log.append(line)
        if " unit=" in line:
            break
    asked = time.monotonic()
    first.send_signal(signal.SIGTERM)
    _, rest = first.communicate(timeout=60)
    assert first.returncode == 3, rest[-3000:]
    assert time.monotonic() - asked < 30
    assert re.search(r"stage embed: stopped by SIGTERM; what was committed stays", rest.splitlines()[-1])
    store = Store(str(tmp_path / "store"))
    committed = len(read_receipts(store, table_folder("t")))
    assert 1 <= committed < ROWS // 50
    assert holder(store, table_folder("t")) is None  # released, not left to run out
    (run,) = earlier_runs(store, "t")
    assert (run.exit_status, run.counts["rows_in"]) == (3, 50 * committed)

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
