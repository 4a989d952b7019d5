"""The load generator, against a server whose answers are known."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from jobs.benchmark.loading import Load, loaded


class Handler(BaseHTTPRequestHandler):
    """Echoes bodies; refuses every third request of /busy; ends the connection after /last."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[Counter] = Counter()
    asked = 0

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        Handler.bodies[body.decode()] += 1
        Handler.asked += 1
        refused = self.path == "/busy" and Handler.asked % 3 == 0
        self.send_response(429 if refused else 200)
        if refused:
            self.send_header("Retry-After-Ms", "20")
        if self.path == "/last":
            self.send_header("Connection", "close")
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - its base's word for it

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Handler.bodies.clear()
    Handler.asked = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def put(port: int, tmp_path: Path, requests: list[dict], clients: int = 3, seconds: float = 0.5):
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return asyncio.run(loaded(Load("127.0.0.1", port, str(file), clients, seconds)))


@pytest.mark.parametrize("path", ["/", "/last", "/chunked"])
def test_every_answer_is_counted_and_every_request_sent(port: int, tmp_path: Path, path: str):
    requests = [{"method": "POST", "path": path, "body": f"body {number}"} for number in range(5)]
    found = put(port, tmp_path, requests)
    assert found.statuses == {"200": Handler.asked}
    assert set(Handler.bodies) == {request["body"] for request in requests}
    assert found.qps == pytest.approx(Handler.asked / 0.5, rel=0.5)
    assert 0 < found.p50_ms <= found.p95_ms <= found.p99_ms
    assert found.refused_p99_ms is None


def test_the_refused_come_back_when_they_are_told_to(port: int, tmp_path: Path):
    found = put(port, tmp_path, [{"method": "GET", "path": "/busy"}], clients=1)
    assert found.statuses["429"] == Handler.asked // 3
    assert found.statuses["429"] <= 0.5 / 0.02 + 1
    assert 0 < found.refused_p99_ms <= found.refused_max_ms


def test_a_server_that_is_gone_is_no_answer(tmp_path: Path):
    found = put(1, tmp_path, [{"method": "GET", "path": "/"}], clients=1, seconds=0.05)
    assert set(found.statuses) == {"0"}
    assert found.qps == 0
