"""An encoder that dies takes nothing with it: Ray starts another, and the counts close."""

import threading
import time
from pathlib import Path

import psutil
import pyarrow.dataset as ds
import pytest

from pipeline.embedding.run import embed
from pipeline.table import table_folder
from tests.conftest import encoded, write_shard
from tests.embedding.test_run import config


def kill_one_encoder(deadline_s: float) -> int | None:
    """Wait for an encoder that is at work, kill its process; its pid."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            if _is_busy_encoder(process):
                process.kill()
                return int(process.pid)
        time.sleep(0.1)
    return None


def _is_busy_encoder(process: psutil.Process) -> bool:
    try:
        return "MapBatches(LazyEncode)" in " ".join(process.cmdline()) and process.cpu_times().user > 4
    except psutil.NoSuchProcess:  # gone while we looked
        return False


@pytest.mark.usefixtures("local_ray")
def test_a_killed_encoder_costs_no_row(tmp_path: Path):
    images = [encoded(i) for i in range(50)]
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [images[i % 50] for i in range(3000)], group_rows=100)
    killed: list[int | None] = []
    killer = threading.Thread(target=lambda: killed.append(kill_one_encoder(60)))
    killer.start()
    report = embed(config(tmp_path / "corpus", tmp_path / "store", unit_rows=100))
    killer.join()
    assert killed[0] is not None
    assert (report.rows_in, report.embedded) == (3000, 3000)
    rows = ds.dataset(tmp_path / "store" / table_folder("t") / "data", partitioning="hive").to_table()
    assert sorted(rows["_row_id"].to_pylist()) == [f"row-{row:05d}" for row in range(3000)]
