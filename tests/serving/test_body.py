import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from starlette.exceptions import HTTPException

from pipeline.config import ServeConfig
from pipeline.serving import body
from pipeline.serving.body import Body
from pipeline.serving.desk import Desk
from tests.serving.conftest import Served, served

CHUNKED = {b"transfer-encoding": "chunked"}
JSON = {"Content-Type": "application/json"}
MAX_BODY_BYTES = 300_000


class Sender:
    """Sends pieces of a hundred bytes; waits for ever after so many."""

    def __init__(self, pieces: int, stalls: bool = False) -> None:
        self.left, self.stalls = pieces, stalls

    async def __call__(self) -> dict:
        if self.left == 0 and self.stalls:
            await asyncio.Event().wait()
        self.left -= 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": self.left > 0 or self.stalls}


@pytest.mark.parametrize("pieces", [1, 10])
def test_a_body_of_just_the_limit_passes(pieces: int):
    async def test() -> None:
        arriving = Body(Sender(pieces), CHUNKED, 100 * pieces)
        for _ in range(pieces):
            assert not arriving.is_whole
            await arriving()
        assert arriving.is_whole

    asyncio.run(test())


def test_a_body_is_refused_with_the_piece_that_is_too_much():
    async def test() -> None:
        sender = Sender(1000)
        arriving = Body(sender, CHUNKED, 250)
        await arriving()
        await arriving()
        with pytest.raises(HTTPException, match="250 bytes"):
            await arriving()
        assert sender.left == 997

    asyncio.run(test())


@pytest.mark.parametrize(("pieces", "is_whole", "left"), [(1, True, 0), (21, True, 0), (22, False, 1), (99, False, 78)])
def test_what_nobody_wants_is_read_to_its_end_or_to_twice_the_limit(pieces: int, is_whole: bool, left: int):
    async def test() -> None:
        sender = Sender(pieces)
        assert await Body(sender, CHUNKED, 1000).discard() == is_whole
        assert sender.left == left

    asyncio.run(test())


def test_a_sender_that_stalls_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body, "LINGER_S", 0.01)
    assert not asyncio.run(Body(Sender(2, stalls=True), CHUNKED, 1000).discard())


@pytest.mark.parametrize(
    "headers",
    [{}, {b"content-length": "0"}, {b"content-length": "100"}, {b"content-length": "100", b"expect": "100-Continue"}],
)
def test_nothing_is_asked_for_where_nothing_comes_or_the_client_waits_to_be_asked(headers: dict[bytes, str]):
    sender = Sender(1)
    is_whole = asyncio.run(Body(sender, headers, 1000).discard())
    is_coming, is_waiting = headers.get(b"content-length") == "100", b"expect" in headers
    assert sender.left == (0 if is_coming and not is_waiting else 1)
    assert is_whole != is_waiting


def test_a_body_in_json_may_hold_so_many_values_and_a_file_any(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body, "MAX_COMMAS", 3)

    async def commas() -> dict:
        return {"type": "http.request", "body": b"1,2,", "more_body": True}

    async def test() -> None:
        arriving = Body(commas, CHUNKED, 1000, is_json=True)
        await arriving()
        with pytest.raises(HTTPException, match="3 values"):
            await arriving()
        file = Body(commas, CHUNKED, 1000)
        for _ in range(100):
            await file()

    asyncio.run(test())


@pytest.fixture(scope="module")
def guarded(demo_store: str, demo_desk: Desk) -> Iterator[Served]:
    """The demo behind a limit that a test can pass."""
    with served(ServeConfig(store=demo_store, max_body_bytes=MAX_BODY_BYTES), desk=demo_desk) as answering:
        yield answering


def refusal_of(reply: httpx.Response) -> str:
    assert 400 <= reply.status_code < 500, (reply.status_code, reply.text[:500])
    return reply.json()["code"]


def is_well(served: Served) -> bool:
    return served.client.get("/v1/search?q=a").status_code == 200


def test_a_body_of_too_many_values_is_refused_by_every_route_that_reads_json(
    guarded: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(body, "MAX_COMMAS", 10_000)
    for path in PATHS:
        for commas in (10_000, 10_001):
            reply = guarded.client.post(path, content=b"[0" + b",0" * commas + b"]", headers=JSON)
            is_refused_for_it = commas > 10_000 and not path.endswith("upload")
            assert (refusal_of(reply) == "body_too_large") == is_refused_for_it


def connect(served: Served) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(path: str, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers)
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def status_in(connection: socket.socket) -> int:
    """Read the status of a reply, however the connection ends behind it."""
    answered = b""
    while b"\r\n" not in answered:
        answered += connection.recv(4096)
    return int(answered.split()[1])


FILE = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
PATHS = ["/v1/search", "/v1/search/upload", "/v1/search/batch", "/v1/embeddings", "/knn-service", "/metadata"]


@pytest.mark.parametrize("path", PATHS)
def test_a_body_beyond_the_limit_is_refused_by_what_it_says_or_by_what_arrives(guarded: Served, path: str):
    is_upload = path.endswith("upload")
    kinds = {"Content-Type": "multipart/form-data; boundary=x"} if is_upload else JSON
    content = (FILE if is_upload else b"[") + b"[" * MAX_BODY_BYTES

    def in_pieces() -> Iterator[bytes]:
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]

    for sent in (content, in_pieces()):
        assert refusal_of(guarded.client.post(path, content=sent, headers=kinds)) == "body_too_large"
    within = guarded.client.post(path, content=b" " * MAX_BODY_BYTES, headers=kinds)
    assert refusal_of(within) in ("bad_request", "invalid_request")


@pytest.mark.parametrize("path", [*PATHS, "/nowhere", "/v1/info"])
def test_a_sender_that_does_not_stop_is_cut_off(guarded: Served, path: str):
    total = 100 * MAX_BODY_BYTES
    with connect(guarded) as connection:
        connection.sendall(head(path, "Transfer-Encoding: chunked"))
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < total:
                connection.sendall(b"2710\r\n" + b"[" * 10_000 + b"\r\n")
                sent += 10_000
                time.sleep(0.001)
    assert sent < total / 2  # what the kernel held on its way included
    assert is_well(guarded)


def test_a_sender_that_says_it_will_send_too_much_is_told_so_before_it_does(guarded: Served):
    with connect(guarded) as connection:
        connection.sendall(head("/v1/search", "Content-Length: 10000000000", "Expect: 100-continue"))
        assert status_in(connection) == 413
        assert b"connection: close" in connection.recv(4096).lower() or connection.recv(1) == b""


def test_a_sender_that_stalls_past_the_limit_gets_its_answer(guarded: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body, "LINGER_S", 0.2)
    for framing, sent in (
        ("Content-Length: 1000000", b"["),
        ("Transfer-Encoding: chunked", b"%x\r\n" % (MAX_BODY_BYTES + 1) + b"[" * (MAX_BODY_BYTES + 1) + b"\r\n"),
    ):
        with connect(guarded) as connection:
            connection.sendall(head("/v1/search", framing) + sent)
            assert status_in(connection) == 413


def test_clients_that_hang_up_or_lie_about_lengths_harm_nobody(guarded: Served):
    for start in (
        b"",
        b"GET",
        head("/v1/search", "Content-Length: 1000") + b"{",
        head("/v1/search", "Transfer-Encoding: chunked") + b"5\r\n[[",
        head("/v1/search", "Transfer-Encoding: chunked") + b"zz\r\n",
        head("/v1/search", "Content-Length: 2") + b"{}" + b"garbage behind it" * 100,
        head("/v1/search", "Content-Length: -1"),
        head("/v1/search", "Content-Length: 1", "Content-Length: 2"),
        head("/v1/search", "Content-Length: 99999999999999999999999"),
        head("/v1/search", "X: " + "y" * 100_000),
        b"\x16\x03\x01\x02\x00" + bytes(500),  # of TLS
    ):
        with connect(guarded) as connection:
            connection.sendall(start)
            time.sleep(0.01)
    assert is_well(guarded)


def test_a_body_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body, "STALL_S", 0.05)

    async def test() -> None:
        arriving = Body(Sender(3, stalls=True), CHUNKED, 1000)
        for _ in range(3):
            await arriving()
        with pytest.raises(HTTPException, match=r"within 0\.05 s") as error:
            await arriving()
        assert error.value.status_code == 408
        whole = Body(Sender(1), CHUNKED, 1000)
        await whole()
        with pytest.raises(TimeoutError):  # of ours: what comes after a body may be long in coming
            await asyncio.wait_for(_forever(whole), 0.2)

    async def _forever(whole: Body) -> None:
        whole.receive = Sender(0, stalls=True)
        await whole()

    asyncio.run(test())
