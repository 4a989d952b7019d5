"""The endpoint as people start it: `jobs.serve`, in a process and a Ray of its own, over HTTP."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from pipeline.config import IndexConfig, PublishConfig, RollbackConfig, ServeConfig
from pipeline.errors import InputError
from pipeline.indexing.run import build
from pipeline.searching.index import OpenIndex, open_index
from pipeline.serving.app import checked_app
from pipeline.store import Store
from pipeline.upkeep.versions import publish_version, roll_back
from tests.conftest import ROOT

KEY, ADMIN = "a-key-of-this-test", "its-admin"
SWAPS = 20
K = 10


@contextmanager
def started(store: str, folder: Path, *flags: str) -> Iterator[httpx.Client]:
    """Start it with keys, and end it as people do."""
    (folder / "keys").write_text(f"another-key\n{KEY}\nadmin {ADMIN}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ("--store", store, "--port", str(port), "--api_key_file", str(folder / "keys"), *flags)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.serve", *flags],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                if client.get("/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield client
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (folder / "log").read_text()[-3000:]


@dataclass(frozen=True)
class Versions:
    """A copy of the demo's store, and two versions of its index, of which the newer lacks some rows."""

    store: Store
    table: str
    older: OpenIndex
    newer: OpenIndex

    @property
    def both(self) -> tuple[OpenIndex, OpenIndex]:
        return self.older, self.newer

    def publish(self, version: str) -> None:
        self.store.replace(f"indexes/{self.table}/CURRENT", f"{version}\n".encode())


@pytest.fixture(scope="module")
def versions(demo_store: str, tmp_path_factory: pytest.TempPathFactory) -> Versions:
    folder = tmp_path_factory.mktemp("versions") / "store"
    shutil.copytree(demo_store, folder)
    store = Store(str(folder))
    (table,) = store.folders("embeddings")
    older = open_index(store, table)
    store.remove(f"embeddings/{table}/receipts/{older.spans[1].receipt.unit}.json")
    newer = build(IndexConfig(store=str(folder), queries=100))
    return Versions(store, table, older, open_index(store, table, newer.version))


@pytest.fixture(scope="module")
def server(versions: Versions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with started(versions.store.url, tmp_path_factory.mktemp("serve"), "--poll_s", "0.2") as client:
        yield client


def until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ready(server: httpx.Client) -> dict:
    return server.get("/readyz").json()["tables"][0]


def metrics(server: httpx.Client) -> str:
    return server.get("/metrics", headers={"Authorization": f"Bearer {ADMIN}"}).text


def test_it_answers_and_says_what_it_serves(server: httpx.Client, versions: Versions):
    assert server.get("/livez").json() == {"status": "alive"}
    table = server.get("/v1/info").json()["tables"][0]
    assert (table["table"], table["d"], table["factory"]) == (versions.table, 64, "Flat")
    assert ready(server)["index_version"] == table["index_version"]
    hits = server.post("/v1/search", json={"query": [{"text": "a red shape"}], "k": 3}).json()["hits"]
    assert [hit["columns"]["colour"] for hit in hits] == ["red"] * 3


def test_an_end_as_soon_as_it_answers_is_clean(demo_store: str, tmp_path: Path):
    with started(demo_store, tmp_path) as client:
        assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("authorization", ["", KEY, "Bearer wrong", f"Basic {KEY}"])
@pytest.mark.parametrize("path", ["/", "/page.js", "/v1/info", "/readyz", "/v1/search", "/openapi.json", "/metrics"])
def test_without_a_key_there_is_no_answer(server: httpx.Client, path: str, authorization: str):
    reply = server.get(path, headers={"Authorization": authorization})
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert server.get("/livez", headers={"Authorization": ""}).status_code == 200


def test_what_is_for_admins_is_refused_to_readers(server: httpx.Client):
    assert server.get("/metrics").status_code == server.post("/v1/admin/refresh").status_code == 403
    assert "rayclip_requests_total" in metrics(server)


class Asking(threading.Thread):
    """Asks one query after the other, and notes every answer that is not right for the version it names."""

    def __init__(self, server: httpx.Client, versions: Versions, seed: int) -> None:
        super().__init__(daemon=True)
        rng = np.random.default_rng(seed)
        self.xq = rng.standard_normal((50, 64)).astype(np.float32)
        self.xq /= np.linalg.norm(self.xq, axis=1, keepdims=True)
        self.right = {
            each.card.version: [[each.row_ids[int(n)].as_py() for n in row] for row in each.search(self.xq, K)[1]]
            for each in versions.both
        }
        self.client = httpx.Client(base_url=server.base_url, headers=server.headers, timeout=30)
        self.space = versions.older.card.space
        self.stop, self.answers, self.wrong = threading.Event(), Counter(), []

    def run(self) -> None:
        turn = 0
        while not self.stop.is_set():
            number = turn % len(self.xq)
            body = {"query": [{"vector": self.xq[number].tolist()}], "space": self.space, "k": K}
            try:
                reply = self.client.post("/v1/search", json=body)
                found = reply.json()
                if reply.status_code != 200:
                    self.wrong.append(found)
                elif [hit["id"] for hit in found["hits"]] != self.right[found["index_version"]][number]:
                    self.wrong.append(found["index_version"])
                else:
                    self.answers[found["index_version"]] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer that is missing
                self.wrong.append(repr(error))
            turn += 1


def test_swaps_under_load_lose_no_request_and_mix_no_versions(server: httpx.Client, versions: Versions):
    older, newer = (each.card.version for each in versions.both)
    asking = [Asking(server, versions, seed) for seed in range(3)]
    for each in asking:
        each.start()
    for swap in range(SWAPS):
        wanted = older if swap % 2 == 0 else newer
        versions.publish(wanted)
        until(lambda wanted=wanted: ready(server)["index_version"] == wanted)
    for each in asking:
        each.stop.set()
    for each in asking:
        each.join(30)
    assert [each.wrong for each in asking] == [[]] * 3
    answers = sum((each.answers for each in asking), Counter())
    assert min(answers[older], answers[newer]) > SWAPS
    assert f'rayclip_index_swaps_total{{table="{versions.table}"}} {SWAPS}.0' in metrics(server)


def test_a_damaged_version_is_refused_and_reported_and_another_one_clears_it(server: httpx.Client, versions: Versions):
    serving = ready(server)["index_version"]
    damaged = next(each.card.version for each in versions.both if each.card.version != serving)
    path = Path(versions.store.path(f"indexes/{versions.table}/{damaged}/index.faiss"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    versions.publish(damaged)
    until(lambda: ready(server)["refused"] is not None)
    assert ready(server)["index_version"] == serving
    assert ready(server)["refused"]["version"] == damaged
    assert "is damaged" in ready(server)["refused"]["why"]
    assert f'rayclip_index_refused{{table="{versions.table}"}} 1.0' in metrics(server)
    assert server.get("/v1/search", params={"q": "a star"}).json()["index_version"] == serving
    versions.publish(serving)
    until(lambda: ready(server)["refused"] is None)
    assert f'rayclip_index_refused{{table="{versions.table}"}} 0.0' in metrics(server)
    path.write_bytes(whole)


def test_a_rollback_is_taken_over_and_so_is_its_undoing(server: httpx.Client, versions: Versions):
    older, newer = (each.card.version for each in versions.both)
    publish_version(PublishConfig(store=versions.store.url, version=newer))
    until(lambda: ready(server)["index_version"] == newer)
    roll_back(RollbackConfig(store=versions.store.url))
    until(lambda: ready(server)["index_version"] == older)
    publish_version(PublishConfig(store=versions.store.url, version=newer))
    reply = server.post("/v1/admin/refresh", headers={"Authorization": f"Bearer {ADMIN}"})
    assert reply.json()["tables"][0]["index_version"] == newer


def test_a_public_address_without_keys_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="wanted --api_key_file"):
        checked_app(ServeConfig(store="s", host="0.0.0.0"))
    (tmp_path / "keys").write_text("\n\n")
    with pytest.raises(InputError, match="wanted a key a line, got none"):
        checked_app(ServeConfig(store="s", host="0.0.0.0", api_key_file=str(tmp_path / "keys")))
    with pytest.raises(InputError, match="No such file"):
        checked_app(ServeConfig(store="s", api_key_file=str(tmp_path / "no")))


def test_what_would_bind_every_address_is_refused(demo_store: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(InputError, match="bind every address"):
        checked_app(ServeConfig(store=demo_store))
    assert checked_app(ServeConfig(store=demo_store, allow_ha_proxy=True, port=18765))


def test_what_cannot_be_served_is_said_before_ray_starts(tmp_path: Path, demo_store: str):
    with pytest.raises(InputError, match="it has no tables"):
        checked_app(ServeConfig(store=str(tmp_path)))
    with pytest.raises(InputError, match="wanted table 'nothing'"):
        checked_app(ServeConfig(store=demo_store, tables=("nothing",)))
    with pytest.raises(InputError, match="no such folder"):
        checked_app(ServeConfig(store=demo_store, model="./nowhere"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="in use"):
            checked_app(ServeConfig(store=demo_store, port=port))
