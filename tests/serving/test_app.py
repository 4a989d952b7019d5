import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from pipeline.config import ServeConfig
from pipeline.errors import InputError
from pipeline.serving.app import checked_app
from tests.conftest import ROOT

KEY = "a-key-of-this-test"


@contextmanager
def served(store: str, folder: Path) -> Iterator[httpx.Client]:
    """The endpoint as people start it, in a process and a Ray of its own, with keys; ended as they end it."""
    (folder / "keys").write_text(f"another-key\n{KEY}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--store", store, "--port", str(port), "--api_key_file", str(folder / "keys")]
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


@pytest.fixture(scope="module")
def server(demo_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(demo_store, tmp_path_factory.mktemp("serve")) as client:
        yield client


def test_it_is_alive_and_ready(server: httpx.Client):
    assert server.get("/livez").json() == {"status": "alive"}
    ready = server.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["index_version"] == server.get("/v1/info").json()["index_version"]


def test_an_end_as_soon_as_it_answers_is_clean(demo_store: str, tmp_path: Path):
    with served(demo_store, tmp_path) as client:
        assert client.get("/livez").status_code == 200


def test_info_says_what_answers(server: httpx.Client):
    info = server.get("/v1/info").json()
    assert (info["d"], info["factory"], info["recall_at_10"]) == (64, "Flat", {"image": 1.0})
    assert info["columns"] == {"caption": "string", "colour": "string"}
    assert info["ntotal"] == 292


def test_text_image_id_and_vector_are_answered(server: httpx.Client, demo_rows: list[dict]):
    row = demo_rows[8]
    by_text = server.post("/v1/search", json={"text": "a red shape", "k": 3}).json()
    assert len(by_text["hits"]) == 3
    assert by_text["hits"][0]["columns"]["colour"] == "red"
    image = base64.b64encode(row["image"]).decode()
    for query in ({"image": image}, {"id": row["key"]}):
        reply = server.post("/v1/search", json={**query, "k": 1}).json()
        assert reply["hits"][0]["id"] == row["key"]
        assert reply["index_version"] == by_text["index_version"]
    vector = [1.0] + [0.0] * 63
    ours = server.post("/v1/search", json={"vector": vector, "space": by_text["space"]})
    assert len(ours.json()["hits"]) == 10


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({}, 422, "invalid_request"),
        ({"text": "a", "id": "b"}, 422, "invalid_request"),
        ({"text": ""}, 422, "invalid_request"),
        ({"text": "a", "k": 0}, 422, "invalid_request"),
        ({"text": "a", "k": 1001}, 422, "invalid_request"),
        ({"text": "a", "limit": 3}, 422, "invalid_request"),
        ({"image": "§§§"}, 422, "image_not_base64"),
        ({"image": "bm90IGFuIGltYWdl"}, 422, "image_not_an_image"),
        ({"vector": [1.0] * 64}, 422, "invalid_request"),
        ({"vector": [1.0, 2.0], "space": "SPACE"}, 422, "wrong_width"),
        ({"vector": [1.0] * 64, "space": "another"}, 422, "wrong_space"),
        ({"vector": [0.0] * 64, "space": "SPACE"}, 422, "no_direction"),
        ({"id": "nobody"}, 404, "unknown_id"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_with_a_code(server: httpx.Client, query: dict, status: int, code: str):
    if query.get("space") == "SPACE":
        query = {**query, "space": server.get("/v1/info").json()["space"]}
    reply = server.post("/v1/search", json=query)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("authorization", ["", KEY, "Bearer wrong", f"Basic {KEY}"])
@pytest.mark.parametrize("path", ["/v1/info", "/readyz", "/v1/search"])
def test_without_a_key_there_is_no_answer(server: httpx.Client, path: str, authorization: str):
    method = "POST" if path == "/v1/search" else "GET"
    reply = server.request(method, path, json={"text": "a"}, headers={"Authorization": authorization})
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert server.get("/livez", headers={"Authorization": ""}).status_code == 200


def test_a_public_address_without_keys_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="wanted --api_key_file"):
        checked_app(ServeConfig(store="s", host="0.0.0.0"))
    (tmp_path / "keys").write_text("\n\n")
    with pytest.raises(InputError, match="wanted a key a line, got none"):
        checked_app(ServeConfig(store="s", host="0.0.0.0", api_key_file=str(tmp_path / "keys")))
    with pytest.raises(InputError, match="No such file"):
        checked_app(ServeConfig(store="s", api_key_file=str(tmp_path / "no")))


def test_what_cannot_be_served_is_said_before_ray_starts(tmp_path: Path, demo_store: str):
    with pytest.raises(InputError, match="it has no tables"):
        checked_app(ServeConfig(store=str(tmp_path)))
    with pytest.raises(InputError, match="no such folder"):
        checked_app(ServeConfig(store=demo_store, model="./nowhere"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="in use"):
            checked_app(ServeConfig(store=demo_store, port=port))
