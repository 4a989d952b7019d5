"""A store that fills up in mid-run: a clear line, status 3, nothing half written; with space again the run goes on."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from pipeline.config import VerifyConfig
from pipeline.store import Store
from pipeline.table import read_receipts, table_folder
from pipeline.upkeep.verify import verify
from tests.conftest import DEMO_MODEL, encoded, write_shard

ROWS = 1600
# What the limit leaves of the kernel's own: workers may write no file of more than so many bytes.
LIMITED_WORKERS = """
import resource, sys
if any("default_worker.py" in argument for argument in sys.orig_argv):
    limit = {limit}
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    images = [encoded(i) for i in range(100)]
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [images[i % 100] for i in range(ROWS)], group_rows=100)
    command = ["jobs.embed", "--model", str(DEMO_MODEL), "--table", "t", "--source.name", "s"]
    return [*command, "--source.key_column", "key", "--source.path", str(tmp_path / "corpus")]


def done(store: Path) -> int:
    return len(read_receipts(Store(str(store)), table_folder("t")))


def keys(store: Path) -> list[str]:
    return sorted(ds.dataset(store / table_folder("t") / "data", partitioning="hive").to_table()["_row_id"].to_pylist())


def test_a_limit_on_file_sizes_is_status_3_and_goes_on_when_lifted(
    command: list[str], tmp_path: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
):
    """`ulimit -f`, set in the workers alone: Ray's own files are larger than any of a small test's."""
    store, site = tmp_path / "store", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(LIMITED_WORKERS.format(limit=64 << 10))
    flags = [*command, "--store", str(store), "--unit_rows", "800"]
    full = run_job(*flags, PYTHONPATH=str(site))
    assert full.returncode == 3, full.stderr[-3000:]
    ours = [line for line in full.stderr.splitlines() if not line.startswith("\x1b[36m(")]  # Ray's actors may go on
    assert re.search(r"storage failed: .*File too large", ours[-1])
    assert "Traceback" not in full.stderr.splitlines()[-1]
    assert done(store) == 0
    again = run_job(*flags)
    assert again.returncode == 0, again.stderr[-3000:]
    assert keys(store) == [f"row-{row:05d}" for row in range(ROWS)]
    assert verify(VerifyConfig(store=str(store))).faults == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 400 KiB; as root, which CI is, or whoever may mount."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="wanted root, to mount a tmpfs")
def test_a_full_disk_is_status_3_and_what_was_committed_stays(
    command: list[str], small_disk: Path, run_job: Callable[..., subprocess.CompletedProcess[str]]
):
    store = small_disk / "store"
    flags = [*command, "--store", str(store), "--unit_rows", "200"]
    full = run_job(*flags)
    assert full.returncode == 3, full.stderr[-3000:]
    assert re.search(r"storage failed: .*No space left", full.stderr.splitlines()[-1])
    committed = done(store)
    assert 0 < committed < 8
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = run_job(*flags)
    assert again.returncode == 0, again.stderr[-3000:]
    assert f"8 units, {committed} of them done before" in again.stdout
    assert keys(store) == [f"row-{row:05d}" for row in range(ROWS)]
    assert verify(VerifyConfig(store=str(store))).faults == ()
