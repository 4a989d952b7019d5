"""The doctor on real clusters: one in order, one with a node on which everything is wrong, one that is open to all.

Faults are planted from outside, in what a node is started with: its flags, its environment, and what its Python loads
first. The rest, which this machine cannot have, is judged in tests/upkeep/test_doctor.py.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import table_folder
from tests.conftest import DEMO_MODEL, ROOT, encoded, write_shard
from tests.faults import FaultyProxy

RunJob = Callable[..., subprocess.CompletedProcess[str]]

# In a process of its own: whether Ray wants a token is settled once for a process, and here it is that it does not.
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=json.loads(sys.argv[1]))
print("at", cluster.address, flush=True)
for line in sys.stdin:
    cluster.add_node(**json.loads(line))
    cluster.wait_for_nodes()
    print("at", cluster.address, flush=True)
cluster.shutdown()
"""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
NODE = {"num_cpus": 4, "object_store_memory": 100 << 20, "include_dashboard": False}

# What Python loads first on the node that is out of order: its clock is ahead, its disks are full.
OUT_OF_ORDER = """
import shutil, time
clock, usage = time.time, shutil.disk_usage
time.time = lambda: clock() + 300
shutil.disk_usage = lambda path: type(usage(path))(1 << 40, (1 << 40) - (1 << 20), 1 << 20)
"""


class RunningCluster:
    """Nodes in other processes; ``environment`` is what a client of theirs needs."""

    def __init__(self, process: subprocess.Popen[str], environment: dict[str, str]) -> None:
        self.process = process
        self.environment = {**environment, "RAY_ADDRESS": self._address()}

    def add(self, **node: object) -> None:
        self.process.stdin.write(json.dumps({**NODE, **node}) + "\n")
        self.process.stdin.flush()
        self._address()

    def raylets(self) -> set[psutil.Process]:
        return {one for one in psutil.Process(self.process.pid).children(recursive=True) if one.name() == "raylet"}

    def _address(self) -> str:
        for line in self.process.stdout:
            if line.startswith("at "):
                return line.split()[1]
        raise AssertionError("the cluster did not start")


@contextmanager
def running(environment: dict[str, str], **head: object) -> Iterator[RunningCluster]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, json.dumps({**NODE, **head})],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield RunningCluster(process, environment)
    finally:
        process.stdin.close()
        process.wait(60)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face hub's cache with the demo's model in it, as if it had been fetched."""
    folder = tmp_path_factory.mktemp("hub")
    repository, commit = folder / "hub" / "models--tests--demo", "0123456789" * 4
    shutil.copytree(DEMO_MODEL, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return folder


@pytest.fixture(scope="module")
def flags(s3: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    url = f"{s3}/doctor"
    shard = write_shard(tmp_path_factory.mktemp("doctor") / "a.parquet", 0, [encoded(i) for i in range(20)])
    Store(url).replace("corpus/a.parquet", shard.read_bytes())
    flags = ["--store", f"{url}/store", "--table", "t", "--model", "tests/demo", "--source.name", "s"]
    return [*flags, "--source.path", f"{url}/corpus", "--source.key_column", "key"]


@pytest.fixture(scope="module")
def cluster(s3: str, hub: Path) -> Iterator[RunningCluster]:
    """Two nodes in order, which want a token."""
    with running({**TOKEN, "HF_HOME": str(hub)}) as cluster:
        cluster.add()
        yield cluster


def store_of(flags: list[str]) -> Store:
    return Store(flags[flags.index("--store") + 1])


def test_nothing_is_wrong_with_a_cluster_in_order(cluster: RunningCluster, flags: list[str], run_job: RunJob):
    done = run_job("jobs.doctor", *flags, "--max_clock_skew_s", "3", **cluster.environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    *fine, last = done.stdout.splitlines()
    assert [line for line in fine if not line.startswith("fine: ")] == []
    assert last == "2 nodes; 0 faults, 0 warnings, 15 checks fine"
    assert store_of(flags).files("") == {}


def test_every_fault_that_is_planted_is_found(
    cluster: RunningCluster, flags: list[str], run_job: RunJob, tmp_path: Path
):
    site = tmp_path / "site"
    (site / "pillow-1.0.dist-info").mkdir(parents=True)
    (site / "pillow-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 1.0\n")
    (site / "sitecustomize.py").write_text(OUT_OF_ORDER)
    cluster.add(
        num_cpus=2,
        num_gpus=1,
        plasma_directory=str(tmp_path),
        env_vars={
            "PYTHONPATH": str(site),
            "HF_HOME": str(tmp_path / "no-model"),
            "AWS_ACCESS_KEY_ID": "",
            "AWS_SECRET_ACCESS_KEY": "",
            "AWS_EC2_METADATA_DISABLED": "true",
            "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE": "1",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
        },
    )
    store = store_of(flags)
    source = flags[flags.index("--source.path") + 1]
    Store(source).replace("broken.parquet", b"PAR1 and no more")
    asked = [*flags, "--source.bad_shards", "skip", "--min_gpus", "1", "--json"]
    plain = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], share=0.0, strip_conditions=True)
    with plain, Lease(store, table_folder("t")):
        done = run_job("jobs.doctor", *asked, **cluster.environment, AWS_ENDPOINT_URL=plain.url)
    assert done.returncode == 3, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout)
    said = {(one["severity"], one["check"], one["what"]): one for one in found["findings"]}
    assert all(one["remedy"] for one in said.values())
    wanted = [
        ("fault", "versions", "pillow 1.0 (here"),
        ("fault", "gpus", "declares 1 GPUs, torch computes on 0"),
        ("fault", "gpus", "0 GPUs; wanted 1"),
        ("fault", "cpus", "2 logical CPUs; wanted 4"),
        ("fault", "object store", "no shared memory"),
        ("fault", "conditional writes", "replace what a first"),
        ("fault", "clocks", "its clock is 300 s ahead"),
        ("fault", "model", "cannot find the model"),
        ("fault", "disk", "1 MiB free of 1 TiB"),
        ("warning", "disk", "columns are kept"),
        ("fault", "environment", "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE lets"),
        ("warning", "environment", "RAY_SERVE_ENABLE_HA_PROXY makes"),
        ("fault", "reach", "does not reach the store: NoCredentialsError"),
        ("fault", "reach", "does not reach the source: NoCredentialsError"),
        ("warning", "source", "leaves it out"),
        ("fault", "table", "another run writes it: process"),
    ]
    for severity, check, what in wanted:
        assert [one for one in said if one[:2] == (severity, check) and what in one[2]], (severity, check, what, said)
    assert len(said) == len(wanted), said
    healthy = {one["where"] for one in said.values()} - {"cluster", store.url, f"{source}/broken.parquet", "here"}
    assert len(healthy) == 1, "two nodes are in order"
    assert list(found["fine"]) == ["answers", "authentication", "dashboard"]


def test_a_ray_without_tokens_that_others_reach_and_a_node_that_hangs_are_found(
    s3: str, hub: Path, flags: list[str], run_job: RunJob
):
    # A node that hangs is to be listed as alive for as long as this takes on a busy machine.
    patience = {"RAY_health_check_failure_threshold": "100"}
    environment = {"RAY_AUTH_MODE": "disabled", "HF_HOME": str(hub), **patience}
    port = 20000 + os.getpid() % 10000
    head = {"include_dashboard": True, "dashboard_host": "0.0.0.0", "dashboard_port": port}
    with running(environment, **head) as cluster:
        before = cluster.raylets()
        cluster.add()
        (raylet,) = cluster.raylets() - before
        raylet.suspend()
        asked = [*flags, "--source.bad_shards", "skip", "--answer_s", "10"]
        done = run_job("jobs.doctor", *asked, **cluster.environment)
        raylet.resume()
    assert done.returncode == 3, done.stdout + done.stderr[-3000:]
    faults = [line for line in done.stdout.splitlines() if line.startswith("fault: ")]
    assert [line.split(": ")[1] for line in faults] == ["answers", "authentication", "dashboard"]
    assert "no answer within 10 s" in faults[0]
    assert "GCS on" in faults[1]
    assert "set RAY_AUTH_MODE=token" in faults[1]
    assert f":{port} and ask for no token" in faults[2]
    assert "--dashboard-host 127.0.0.1" in faults[2]
    assert done.stderr.splitlines()[-1].startswith("jobs.doctor: 3 faults (answers, authentication, dashboard)")
