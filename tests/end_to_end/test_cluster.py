"""Four raylets as the manifests say, with token authentication: a night, its twin, two lost workers, a swap, a drain.

Shapes, labels, start parameters and the endpoint are read from cluster/kubernetes/overlays/large; what differs is said
beside it: all nodes are on this machine, have four logical CPUs each, and GPUs that are only counted.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow.dataset as ds
import pytest
import yaml

from tests.conftest import DEMO_MODEL, ROOT, encoded, write_shard

BIN = Path(sys.executable).parent
ROWS, MORE = 2000, 200
KEY = "a-key-for-tests"
CPUS = 4  # of each node, whatever it says: more would be as many processes on this machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(holds: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.5)


@dataclass
class Raylets:
    """A cluster of processes that `ray start` makes, ended by their ids."""

    manifests: dict[tuple[str, str], dict[str, Any]]
    folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets: 107 bytes
    gcs_port: int = field(default_factory=free_port)
    dashboard_port: int = field(default_factory=free_port)
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {
            **{
                name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES")
            },
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": self.spec["authOptions"]["mode"],
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
        }
        self.address = f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def spec(self) -> dict[str, Any]:
        return self.manifests["RayCluster", "rayclip"]["spec"]

    def start_head(self) -> None:
        parameters = {
            **self.spec["headGroupSpec"]["rayStartParams"],
            "dashboard-host": "127.0.0.1",  # not a pod's network
            "dashboard-port": self.dashboard_port,
            "port": self.gcs_port,
            "temp-dir": self.folder,
        }
        self._start("head", ["--head", *self._flags(self.spec["headGroupSpec"], parameters)])
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert self.nodes["head"].poll() is None, self.log("head")
            try:
                if self.get("/api/jobs/").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        pytest.fail(self.log("head"))

    def start_worker(self, name: str, group_name: str) -> None:
        """Start it, and again where it ends before it is part of the cluster, as a kubelet does."""
        for _ in range(3):
            self._start_worker(name, group_name)
            process = self.nodes[name]
            until(lambda: process.poll() is not None or "Ray runtime started" in self.log(name), name)  # noqa: B023
            if process.poll() is None:
                return
        pytest.fail(self.log(name))

    def _start_worker(self, name: str, group_name: str) -> None:
        (group,) = (group for group in self.spec["workerGroupSpecs"] if group["groupName"] == group_name)
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        parameters = {**group["rayStartParams"], "address": f"127.0.0.1:{self.gcs_port}", "num-cpus": CPUS}
        parameters["num-gpus"] = int(limits.get("nvidia.com/gpu", 0))  # as KubeRay makes it of the limits
        self._start(name, self._flags(group, parameters))

    def _flags(self, group: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
        labels = ",".join(f"{name}={value}" for name, value in group["labels"].items())
        parameters = {**parameters, "labels": labels, "object-store-memory": 150 << 20}
        parameters["dashboard-agent-listen-port"] = free_port()
        return [f"--{name}={value}" for name, value in parameters.items()]

    def _start(self, name: str, flags: list[str]) -> None:
        with (Path(self.folder) / f"{name}.log").open("w") as log:
            self.nodes[name] = subprocess.Popen(
                [BIN / "ray", "start", "--block", "--disable-usage-stats", *flags],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self, name: str) -> None:
        process = self.nodes.pop(name)
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(30)

    def log(self, name: str) -> str:
        return (Path(self.folder) / f"{name}.log").read_text()[-3000:]

    def get(self, path: str, *, token: bool = True) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"} if token else {}
        return httpx.get(f"{self.address}{path}", headers=headers, timeout=20)

    def run(self, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def popen(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def submit(self, name: str, entrypoint: str, *flags: str) -> list[str]:
        """The command that a schedule has.

        The code is every node's own, as in an image: nodes of one machine, which share a folder for what is uploaded,
        would replace it below each other.
        """
        flags = ("--address", self.address, "--id", name, "--entrypoint", entrypoint, *flags)
        return [sys.executable, "-m", "jobs.submit", *flags]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Raylets]:
    built = subprocess.run(
        [BIN / "kubectl", "kustomize", ROOT / "cluster/kubernetes/overlays/large"], capture_output=True, check=True
    )
    manifests = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(built.stdout)}
    raylets = Raylets(manifests)
    try:
        raylets.start_head()
        for name, group in (("cpu", "cpu"), ("gpu-1", "gpu"), ("gpu-2", "gpu")):
            raylets.start_worker(name, group)
        yield raylets
    finally:
        for name in [*raylets.nodes]:
            raylets.kill(name)
        shutil.rmtree(raylets.folder, ignore_errors=True)


@dataclass(frozen=True)
class Night:
    """What a night's submissions said, and where they wrote."""

    folder: Path
    entrypoint: str
    status: int
    said: str
    twin: subprocess.CompletedProcess[str]  # which came while it ran


@pytest.fixture(scope="module")
def night(cluster: Raylets, tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A backfill by `ray job submit`, which loses a decoding and an encoding node, and gets others, as KubeRay does."""
    folder = tmp_path_factory.mktemp("night")
    images = [encoded(i) for i in range(50)]
    write_shard(folder / "corpus" / "a.parquet", 0, [images[i % 50] for i in range(ROWS)], group_rows=100)
    (folder / "nightly.toml").write_text(
        f'store = "{folder}/store"\nmodel = "{DEMO_MODEL}"\ntable = "t"\nunit_rows = 100\n'
        # One decoder on a node: two cores do not carry ten. Half of the budget is for pictures, of 166 MB at most.
        'memory_budget = "400MB"\npreprocess.max_image_pixels = 2_000_000\nencode.batch_size = 4\n'
        "wait.gpus = 2\nwait.cpus = 8\nwait.timeout_s = 120\n"
        '[source]\nname = "s"\nkey_column = "key"\n'
        f'path = "{folder}/corpus"\n'
    )
    entrypoint = f"python -m jobs.backfill --config {folder}/nightly.toml"
    submit = [str(BIN / "ray"), "job", "submit", "--address", cluster.address, "--submission-id", "night-1"]
    job = cluster.popen(*submit, "--", *entrypoint.split())
    said = []
    for line in job.stdout:
        said.append(line)
        if " unit=" in line:
            break
    else:
        pytest.fail("".join(said)[-4000:])  # it ended before its first unit
    twin = cluster.popen(*cluster.submit("night-2", entrypoint))
    for name in ("gpu-1", "cpu"):
        cluster.kill(name)
    cluster.start_worker("gpu-3", "gpu")
    cluster.start_worker("cpu-2", "cpu")
    twin_said, _ = twin.communicate(timeout=120)
    rest = job.stdout.read()  # communicate() would leave out what this has read ahead
    job.wait(60)
    twin_done = subprocess.CompletedProcess([], twin.returncode, twin_said)
    return Night(folder, entrypoint, job.returncode, "".join(said) + rest, twin_done)


def test_nodes_are_as_the_manifests_say_and_nobody_gets_in_without_the_token(cluster: Raylets, night: Night):
    assert cluster.get("/api/jobs/").status_code == 200
    assert cluster.get("/api/jobs/", token=False).status_code == 401
    script = "import json, ray; ray.init(address='auto', logging_level='ERROR'); print(json.dumps(ray.nodes()))"
    environment = {**cluster.environment, "RAY_ADDRESS": f"127.0.0.1:{cluster.gcs_port}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    nodes = json.loads(done.stdout.splitlines()[-1])
    alive = [node for node in nodes if node["Alive"]]
    assert sorted(node["Labels"]["rayclip/pool"] for node in nodes if not node["Alive"]) == ["cpu", "gpu"]  # lost
    pools = Counter(node["Labels"].get("rayclip/pool", "head") for node in alive)
    assert pools == {"head": 1, "cpu": 1, "gpu": 2}
    markets = {node["Labels"].get("rayclip/pool", "head"): node["Labels"]["ray.io/market-type"] for node in alive}
    assert markets == {"head": "on-demand", "cpu": "spot", "gpu": "spot"}
    assert sum(node["Resources"].get("GPU", 0) for node in alive) == 2
    (head,) = (node for node in alive if "node:__internal_head__" in node["Resources"])
    assert head["Resources"].get("CPU", 0) == 0


def test_a_night_that_loses_two_workers_finishes_with_every_row(night: Night):
    assert night.status == 0, night.said[-4000:]
    assert f"rows in {ROWS} = embedded {ROWS} + rejected 0" in night.said
    assert night.said.count(" unit=") == ROWS // 100  # of which one was there when they were lost
    pools = json.loads(night.said.partition("pools=")[2].partition("\n")[0])
    assert (pools["encoders"], pools["encoder_gpus"]) == (2, 1.0)
    assert row_ids(night) == [f"row-{row:05d}" for row in range(ROWS)]


def test_a_night_that_comes_while_another_runs_ends_with_4_and_says_who_has_the_table(night: Night):
    assert night.twin.returncode == 4, night.twin.stdout[-3000:]
    last = night.twin.stdout.strip().splitlines()[-1]
    assert "exit code 4" in last
    assert re.search(r"held by .*process \d+", night.twin.stdout)


def test_a_night_that_is_handed_over_twice_is_done_once(cluster: Raylets, night: Night):
    again = cluster.run(*cluster.submit("night-1", night.entrypoint))
    assert again.returncode == 0, again.stderr[-3000:]
    assert "night-1 is already done: SUCCEEDED" in again.stdout
    assert "nothing was started" in again.stdout
    raw = cluster.run(
        str(BIN / "ray"), "job", "submit", "--address", cluster.address, "--submission-id", "night-1", "--", "true"
    )
    assert raw.returncode != 0
    assert "already exists" in raw.stdout + raw.stderr


def test_a_job_ends_with_its_own_status(cluster: Raylets, night: Night):
    entrypoint = "pwd && python -m jobs.backfill --config missing.toml"
    wrong = cluster.run(*cluster.submit("wrong", entrypoint, "--working_dir", ".", "--py_modules", '["pipeline"]'))
    assert wrong.returncode == 2, wrong.stdout[-2000:] + wrong.stderr[-2000:]
    assert "working_dir_files" in wrong.stdout
    last = wrong.stderr.strip().splitlines()[-1]
    assert last.startswith("jobs.submit: wrong: FAILED")
    assert "exit code 2: jobs.backfill: --config missing.toml" in last


class Asking(threading.Thread):
    """Somebody who searches all the while."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url, self.over = url, threading.Event()
        self.statuses: Counter[int | str] = Counter()
        self.versions: list[str] = []

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {"query": [{"text": "a red star"}], "k": 3}
        with httpx.Client(headers=headers, timeout=30) as client:
            while not self.over.wait(0.05):
                try:
                    answer = client.post(f"{self.url}/v1/search", json=body)
                except httpx.HTTPError as error:
                    self.statuses[repr(error)] += 1
                    continue
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.versions.append(answer.json()["index_version"])

    def __enter__(self) -> "Asking":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


@pytest.fixture(scope="module")
def endpoint(cluster: Raylets, night: Night) -> str:
    """The RayService's application, deployed through the same API that KubeRay uses."""
    deployed = yaml.safe_load(cluster.manifests["RayService", "endpoint"]["spec"]["serveConfigV2"])
    port = free_port()
    (night.folder / "keys").write_text(KEY + "\n")
    deployed["proxy_location"] = "HeadOnly"  # four nodes of one machine would want one port
    deployed["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = deployed["applications"]
    application["args"] |= {
        "store": f"{night.folder}/store",
        "host": "127.0.0.1",
        "api_key_file": f"{night.folder}/keys",
        "replicas": 2,
        "poll_s": 1.0,
    }
    (night.folder / "serve.yaml").write_text(yaml.safe_dump(deployed))
    done = cluster.run(str(BIN / "serve"), "deploy", str(night.folder / "serve.yaml"), "--address", cluster.address)
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: len(replica_nodes(cluster)) == 2, "two replicas on two nodes")
    url = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{url}/v1/info", timeout=20).status_code == 401
    return url


def replica_nodes(cluster: Raylets) -> set[str]:
    """The nodes whose replicas run."""
    application = cluster.get("/api/serve/applications/").json()["applications"]["rayclip"]
    replicas = application["deployments"].get("Endpoint", {"replicas": []})["replicas"]
    return {replica["node_id"] for replica in replicas if replica["state"] == "RUNNING"}


def test_the_next_night_is_taken_over_in_place_without_losing_a_request(cluster: Raylets, night: Night, endpoint: str):
    images = [encoded(1000 + i) for i in range(MORE)]
    write_shard(night.folder / "corpus" / "b.parquet", ROWS, images, group_rows=100)
    replicas = replica_nodes(cluster)
    with Asking(endpoint) as asking:
        until(lambda: asking.versions, "a first answer")
        done = cluster.run(*cluster.submit("night-3", night.entrypoint), timeout_s=200)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        published = (night.folder / "store/indexes/t/CURRENT").read_text()
        until(lambda: set(asking.versions[-20:]) == {asking.versions[-1]} != {asking.versions[0]}, "both replicas")
    assert set(asking.statuses) == {200}, asking.statuses
    assert asking.versions[-1] in published
    assert len(set(asking.versions)) == 2
    assert replica_nodes(cluster) == replicas  # nothing was deployed
    assert row_ids(night) == [f"row-{row:05d}" for row in range(ROWS + MORE)]


def test_a_node_that_is_drained_hands_its_replica_over(cluster: Raylets, night: Night, endpoint: str):
    leaving = min(replica_nodes(cluster))
    with Asking(endpoint) as asking:
        until(lambda: asking.versions, "a first answer")
        drained = cluster.run(
            *(str(BIN / "ray"), "drain-node", "--address", f"127.0.0.1:{cluster.gcs_port}", "--node-id", leaving),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "its machine is taken away"),
            *("--deadline-remaining-seconds", "60"),
        )
        assert drained.returncode == 0, drained.stdout + drained.stderr
        until(lambda: len(nodes := replica_nodes(cluster)) == 2 and leaving not in nodes, "a replica elsewhere")
        count = len(asking.versions)
        until(lambda: len(asking.versions) > count + 20, "answers by those that stay")
    assert set(asking.statuses) == {200}, asking.statuses


def row_ids(night: Night) -> list[str]:
    table = ds.dataset(night.folder / "store/embeddings/t/data", partitioning="hive").to_table()
    return sorted(table["_row_id"].to_pylist())
