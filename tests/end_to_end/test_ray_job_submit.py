"""The main job from a checkout: `ray start --head`, then `ray job submit --working-dir .` to the real job server."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from pipeline.store import Store
from pipeline.table import read_receipts, table_folder
from tests.conftest import DEMO_MODEL, ROOT

RAY = Path(sys.executable).parent / "ray"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def job_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A head node in processes of its own, ended by their ids. Gives the address of its job server."""
    port, gcs_port, agent_port = free_port(), free_port(), free_port()  # the usual ones may be another Ray's
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # socket paths are limited to 107 bytes
    environment = {**os.environ, "PATH": f"{RAY.parent}:{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    flags = f"--head --block --num-cpus=4 --object-store-memory=200000000 --temp-dir={folder} --port={gcs_port} "
    flags += f"--include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port={port} --disable-usage-stats "
    flags += f"--dashboard-agent-listen-port={agent_port}"
    with (Path(folder) / "head.log").open("w") as log:
        head = subprocess.Popen(
            [RAY, "start", *flags.split()],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert head.poll() is None, (Path(folder) / "head.log").read_text()
        try:
            if httpx.get(f"{address}/api/jobs/", timeout=5).status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.5)
    yield address
    for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
        process.kill()
    head.wait(30)
    shutil.rmtree(folder, ignore_errors=True)


def submit(address: str, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--address", address, "--working-dir", ".", "--", *entrypoint]
    deadline = time.monotonic() + 90
    while True:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
        starting = "No available agent to submit job" in done.stdout + done.stderr
        if not starting or time.monotonic() > deadline:
            return done


def test_the_main_job_runs_from_a_working_directory_that_is_uploaded(job_server: str, corpus: Path, tmp_path: Path):
    config = tmp_path / "job.toml"
    config.write_text(
        f'store = "{tmp_path}/store"\nmodel = "{DEMO_MODEL}"\ntable = "t"\nunit_rows = 20\n'
        f'[source]\nname = "s"\npath = "{corpus}/*.parquet"\nkey_column = "key"\n'
    )
    done = submit(job_server, "python", "-m", "jobs.embed", "--config", str(config))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "rows in 120 = embedded 115 + rejected 5" in done.stdout
    receipts = read_receipts(Store(str(tmp_path / "store")), table_folder("t"))
    assert sum(receipt.rows_in for receipt in receipts.values()) == 120
