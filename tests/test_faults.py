import http.client
import os
import socket
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError, ResponseStreamingError

from tests.faults import KINDS, FaultyProxy

BUCKET = "faults"
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
}  # moto looks no closer
ONCE = Config(retries={"total_max_attempts": 1}, read_timeout=30, connect_timeout=30)


def client_of(url: str, config: Config = ONCE) -> BaseClient:
    return boto3.client("s3", endpoint_url=url, config=config)


@pytest.fixture(scope="module")
def behind(s3: str) -> BaseClient:
    """The store itself, without the proxy: what was really written."""
    client = client_of(os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture
def proxy(behind: BaseClient) -> Iterator[Callable[..., FaultyProxy]]:
    """Start proxies that inject nothing unless told to; they end with the test."""
    with_each: list[AbstractContextManager[FaultyProxy]] = []

    def start(share: float = 0, *kinds: str, **options: Any) -> FaultyProxy:
        started = FaultyProxy(os.environ["AWS_ENDPOINT_URL"], share, kinds or KINDS, **options)
        with_each.append(started)
        return started.__enter__()

    yield start
    for started in with_each:
        started.__exit__(None, None, None)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return request.node.name


def put(client: BaseClient, key: str, body: bytes = b"content", **options: str) -> dict:
    return client.put_object(Bucket=BUCKET, Key=key, Body=body, **options)


def got(client: BaseClient, key: str) -> bytes:
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def is_there(client: BaseClient, key: str) -> bool:
    return "Contents" in client.list_objects_v2(Bucket=BUCKET, Prefix=key)


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    """The status and the code with which a call was refused."""
    with pytest.raises(ClientError) as raised:
        call()
    response = raised.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def raw(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)


def test_objects_come_and_go_as_without_a_proxy(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    through = client_of(proxy().url)
    for number, body in enumerate((b"", b"x", os.urandom(3 << 20))):
        name = f"{key}/a b+c/{number}%2F=é"
        put(through, name, body, ContentType="text/x", Metadata={"under_score": "1"})
        assert got(through, name) == got(behind, name) == body
        head = through.head_object(Bucket=BUCKET, Key=name)
        assert (head["ContentLength"], head["ContentType"]) == (len(body), "text/x")
        assert head["Metadata"] == {"under_score": "1"}
    part = through.get_object(Bucket=BUCKET, Key=name, Range="bytes=10-19")
    assert part["Body"].read() == body[10:20]
    listed = through.list_objects_v2(Bucket=BUCKET, Prefix=key)["Contents"]
    assert [entry["Size"] for entry in listed] == [0, 1, 3 << 20]
    through.delete_object(Bucket=BUCKET, Key=listed[0]["Key"])
    through.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": entry["Key"]} for entry in listed[1:]]})
    assert not is_there(behind, key)


def test_what_is_not_there_is_said_as_without_a_proxy(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    through = client_of(proxy().url)
    assert refusal(lambda: got(through, key)) == (404, "NoSuchKey")
    assert refusal(lambda: through.head_object(Bucket=BUCKET, Key=key)) == (404, "404")


def test_a_conditional_write_never_replaces(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    through = client_of(proxy().url)
    put(through, key, b"first", IfNoneMatch="*")
    assert refusal(lambda: put(through, key, b"second", IfNoneMatch="*")) == (412, "PreconditionFailed")
    assert got(behind, key) == b"first"


def test_a_multipart_upload_never_replaces_either(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    through = client_of(proxy().url)
    pieces = [os.urandom(5 << 20), b"the end"]

    def upload() -> None:
        name = {"Bucket": BUCKET, "Key": key}
        name["UploadId"] = through.create_multipart_upload(**name)["UploadId"]
        tags = [through.upload_part(**name, PartNumber=n, Body=body)["ETag"] for n, body in enumerate(pieces, 1)]
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        through.complete_multipart_upload(**name, MultipartUpload={"Parts": parts}, IfNoneMatch="*")

    upload()
    assert got(behind, key) == b"".join(pieces)
    assert refusal(upload) == (412, "PreconditionFailed")


@pytest.mark.parametrize("signed_pieces", [False, True])
def test_a_body_sent_in_pieces_arrives_whole(
    proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str, signed_pieces: bool
):
    pieces, headers = [b"abc" * 1000, b"d", b"ef"], {}
    sent = pieces
    if signed_pieces:
        headers = {"Content-Encoding": "aws-chunked", "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}
        sent = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""]]
    connection = raw(proxy().url)
    for _ in range(2):  # the second finds the connection at the start of a request
        connection.request("PUT", f"/{BUCKET}/{key}", iter(sent), headers, encode_chunked=True)
        assert connection.getresponse().read() == b""
    connection.close()
    assert got(behind, key) == b"".join(pieces)


def test_a_client_that_asks_first_is_told_to_go_on(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    address = urlsplit(proxy().url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"PUT /{BUCKET}/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n".encode())
        connection.sendall(b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"ab")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert got(behind, key) == b"ab"


def test_half_a_body_is_not_forwarded(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    started = proxy()
    address = urlsplit(started.url)
    for framing in (b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"):
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(f"PUT /{BUCKET}/{key} HTTP/1.1\r\nHost: x\r\n".encode() + framing)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1000) == b""
    assert started.requests == 0
    assert not is_there(behind, key)


def test_one_connection_carries_many_requests(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    put(behind, key)
    connection = raw(proxy(1, "500").url)
    connection.connect()
    kept = connection.sock
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        connection.request(method, f"/{BUCKET}/{key}", b"body" if method == "PUT" else None)
        response = connection.getresponse()
        assert (response.status, response.read() == b"") == (500, method == "HEAD")
        assert connection.sock is kept
    connection.close()


@pytest.mark.parametrize(("kind", "status", "code"), [("500", 500, "InternalError"), ("503", 503, "SlowDown")])
def test_a_refusal_is_not_forwarded(
    proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str, kind: str, status: int, code: str
):
    started = proxy(1, kind)
    through = client_of(started.url)
    assert refusal(lambda: put(through, key)) == (status, code)
    assert not is_there(behind, key)
    put(behind, key)
    assert refusal(lambda: got(through, key)) == (status, code)
    assert refusal(lambda: through.delete_object(Bucket=BUCKET, Key=key)) == (status, code)
    assert is_there(behind, key)
    assert refusal(lambda: through.head_object(Bucket=BUCKET, Key=key)) == (status, str(status))
    assert started.injected == {kind: started.requests} == {kind: 4}


def test_only_conditional_writes_conflict(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    started = proxy(1, "409")
    through = client_of(started.url)
    assert refusal(lambda: put(through, key, IfNoneMatch="*")) == (409, "ConditionalRequestConflict")
    assert not is_there(behind, key)
    put(through, key)
    tag = through.head_object(Bucket=BUCKET, Key=key)["ETag"]
    assert refusal(lambda: through.get_object(Bucket=BUCKET, Key=key, IfNoneMatch=tag)) == (304, "304")
    assert (started.injected, started.requests) == ({"409": 1}, 4)


@pytest.mark.parametrize("kind", ["timeout", "reset"])
def test_a_connection_that_ends_without_an_answer_wrote_nothing(
    proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str, kind: str
):
    started = proxy(1, kind, hold_s=0.05)
    with pytest.raises(ConnectionClosedError):
        put(client_of(started.url), key)
    connection = raw(started.url)
    connection.request("GET", f"/{BUCKET}/{key}", headers=SIGNED)
    with pytest.raises(http.client.RemoteDisconnected if kind == "timeout" else ConnectionResetError) as raised:
        connection.getresponse()
    assert isinstance(raised.value, http.client.RemoteDisconnected) == (kind == "timeout")
    assert not is_there(behind, key)
    assert started.injected == {kind: 2}


def test_silence_outlasts_the_patience_of_a_client(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    started = proxy(1, "timeout", hold_s=60)  # ends with the proxy, not after a minute
    with pytest.raises(ReadTimeoutError):
        put(client_of(started.url, ONCE.merge(Config(read_timeout=0.1))), key)
    assert not is_there(behind, key)


@pytest.mark.parametrize("size", [1, 2, 100_001])
def test_a_cut_answer_is_half_of_what_it_announces(
    proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str, size: int
):
    put(behind, key, bytes(size))
    started = proxy(1, "cut")
    connection = raw(started.url)
    connection.request("GET", f"/{BUCKET}/{key}", headers=SIGNED)
    with pytest.raises(http.client.IncompleteRead) as raised:
        connection.getresponse().read()
    assert (len(raised.value.partial), raised.value.expected) == (size // 2, size - size // 2)
    with pytest.raises(ResponseStreamingError):
        got(client_of(started.url), key)


def test_an_answer_without_a_body_cannot_be_cut(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    started = proxy(1, "cut")
    through = client_of(started.url)
    put(through, key, b"")
    assert through.head_object(Bucket=BUCKET, Key=key)["ContentLength"] == 0
    assert got(through, key) == b""
    through.delete_object(Bucket=BUCKET, Key=key)
    assert started.injected == {}


def test_a_late_error_comes_after_the_write(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    started = proxy(1, "late")
    through = client_of(started.url)
    assert refusal(lambda: put(through, key, IfNoneMatch="*")) == (500, "InternalError")
    assert got(behind, key) == b"content"
    assert refusal(lambda: put(through, key, b"again", IfNoneMatch="*")) == (412, "PreconditionFailed")  # not done
    assert got(through, key) == b"content"  # not a write
    assert refusal(lambda: through.delete_object(Bucket=BUCKET, Key=key)) == (500, "InternalError")
    assert not is_there(behind, key)
    refused = partial(through.create_multipart_upload, Bucket=BUCKET, Key=key)  # a POST
    assert refusal(refused) == (500, "InternalError")
    assert len(behind.list_multipart_uploads(Bucket=BUCKET, Prefix=key)["Uploads"]) == 1
    assert started.injected == {"late": 3}


def test_a_store_without_conditions_lets_the_second_write_pass(
    proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str
):
    started = proxy(1, "409", strip_conditions=True)
    for body in (b"first", b"second"):
        put(client_of(started.url), key, body, IfNoneMatch="*")
    assert got(behind, key) == b"second"
    assert started.injected == {}  # it knows no conflicts either
    started.strip_conditions = False
    assert refusal(lambda: put(client_of(started.url), key, IfNoneMatch="*"))[0] == 409


def outcomes(proxy: FaultyProxy, count: int = 60) -> list[str]:
    """What so many writes and reads in turn meet, told by what was counted."""
    seen, key = [], uuid.uuid4().hex
    for number in range(count):
        before = proxy.injected.copy()
        connection = raw(proxy.url)
        try:
            if number % 2:
                connection.request("GET", f"/{BUCKET}?prefix=nothing", headers=SIGNED)
            else:
                connection.request("PUT", f"/{BUCKET}/{key}/{number}", b"ab", {"If-None-Match": "*"} | SIGNED)
            connection.getresponse().read()
        except (ConnectionError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        seen.append("".join((proxy.injected - before).elements()))
    return seen


def test_the_same_seed_spoils_the_same_requests(proxy: Callable[..., FaultyProxy], behind: BaseClient):
    first = outcomes(proxy(0.15, seed=3, hold_s=0))
    assert outcomes(proxy(0.15, seed=3, hold_s=0)) == first
    assert outcomes(proxy(0.15, seed=4, hold_s=0)) != first
    assert set(first) == {"", *KINDS}


def test_leaving_kinds_out_does_not_move_the_others(proxy: Callable[..., FaultyProxy], behind: BaseClient):
    every = outcomes(proxy(0.3, seed=5, hold_s=0), 30)
    only = outcomes(proxy(0.3, "503", seed=5, hold_s=0), 30)
    assert {number for number, kind in enumerate(every) if kind == "503"} < {n for n, kind in enumerate(only) if kind}
    assert set(only) == {"", "503"}


def test_of_many_clients_at_once_every_fault_is_counted_once(proxy: Callable[..., FaultyProxy], behind: BaseClient):
    started = proxy(0.3, "500", "503", "reset")

    def ask(number: int) -> str:
        connection = raw(started.url)
        try:
            connection.request("GET", f"/{BUCKET}?prefix=nothing", headers=SIGNED)
            return str(connection.getresponse().status)
        except ConnectionResetError:
            return "reset"
        finally:
            connection.close()

    with ThreadPoolExecutor(16) as pool:
        met = Counter(pool.map(ask, range(200)))
    assert met.pop("200") == 200 - started.injected.total()
    assert met == started.injected
    assert started.requests == 200


def test_the_share_is_that_of_each_kind(proxy: Callable[..., FaultyProxy]):
    started = proxy(0.1, seed=1)
    drawn = [started.draw() for _ in range(5000)]
    for kind in KINDS:
        assert sum(kind in kinds for kinds in drawn) == pytest.approx(500, abs=90)  # four standard deviations
    assert started.requests == 5000


def test_a_pause_injects_nothing_and_moves_nothing(proxy: Callable[..., FaultyProxy], behind: BaseClient):
    straight, paused = proxy(0.3, seed=6, hold_s=0), proxy(0.3, seed=6, hold_s=0)
    every = outcomes(straight, 20)
    first = outcomes(paused, 10)
    paused.paused = True
    assert set(outcomes(paused, 10)) == {""}
    paused.paused = False
    assert first + outcomes(paused, 10) == every
    assert paused.requests == 30


def test_a_closed_proxy_answers_nobody(proxy: Callable[..., FaultyProxy], behind: BaseClient, key: str):
    put(behind, key)
    with FaultyProxy(os.environ["AWS_ENDPOINT_URL"], share=0) as started:
        kept = raw(started.url)
        kept.request("GET", f"/{BUCKET}/{key}", headers=SIGNED)
        assert kept.getresponse().read() == b"content"
    assert kept.sock.recv(1000) == b""
    kept.close()
    with pytest.raises(ConnectionRefusedError):
        raw(started.url).connect()


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'slow'"):
        FaultyProxy("http://127.0.0.1:1", kinds=("500", "slow"))
