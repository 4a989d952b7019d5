"""A store that fails now and then: an HTTP/1.1 proxy on loopback that spoils a share of the requests it passes on.

In: the URL of an S3 server (moto's), a share, a seed. Out: a URL that answers as that server does, but for the faults,
and a count of those. The n-th request that is not paused meets the same fault in every run with the same seed; which
request is the n-th is the clients' doing. Bodies are held whole in memory. Knows nothing of signatures, nor of stores.
"""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

KINDS = (
    "500",  # InternalError; nothing was forwarded
    "503",  # SlowDown; nothing was forwarded
    "409",  # ConditionalRequestConflict, to conditional writes only; nothing was forwarded
    "timeout",  # nothing was forwarded; silence for hold_s, then the connection is closed
    "reset",  # nothing was forwarded; the connection is reset at once
    "cut",  # forwarded; half of the announced body, then the connection is closed; for answers with a body
    "late",  # forwarded and carried out, but answered with a 500; for writes
)
WRITES = ("PUT", "POST", "DELETE")

_AFTER = ("cut", "late")
_ERRORS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "409": (409, "ConditionalRequestConflict", "A conflicting operation occurred during this conditional write."),
    "late": (500, "InternalError", "We encountered an internal error. Please try again."),
}
# Of one connection, not of the request (RFC 9110, 7.6.1); Expect is answered here, and lengths are counted anew.
_OF_THE_CONNECTION = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_OF_THE_CONNECTION |= {"expect", "content-length"}


class _Request(NamedTuple):
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def is_conditional_write(self) -> bool:
        return self.method in ("PUT", "POST") and any(name.lower() == "if-none-match" for name, _ in self.headers)


class _Answer(NamedTuple):
    status: int
    reason: str
    headers: list[tuple[str, str]]  # without a length
    length: str | None  # as announced: an answer to HEAD has a length and no body
    body: bytes


class FaultyProxy:
    """Passes requests on to ``target`` between ``with`` and its end; ``url`` is where it listens.

    Args:
        share: probability of each kind, drawn independently and in the order of KINDS; the first that fits is injected.
        kinds: those that may be injected; leaving some out does not move the others.
        hold_s: silence of a "timeout". Up to the client's own read timeout it is a server that hangs up.
        strip_conditions: forward writes without If-None-Match, as a store does that knows no conditional writes.
    """

    def __init__(
        self,
        target: str,
        share: float = 0.05,
        kinds: Sequence[str] = KINDS,
        seed: int = 0,
        hold_s: float = 1.0,
        strip_conditions: bool = False,
    ) -> None:
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"kinds of faults: wanted some of {KINDS}, got {sorted(unknown)}")
        self.address = urlsplit(target).netloc
        self.share, self.kinds, self.hold_s = share, tuple(kinds), hold_s
        self.strip_conditions = strip_conditions
        self.paused = False  # while True nothing is injected, and nothing is drawn
        self.injected: Counter[str] = Counter()
        self.requests = 0
        self.closed = threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        self._thread.join()

    def draw(self) -> list[str]:
        """Count a request, and name the faults that it meets if they fit, in the order of KINDS."""
        with self._lock:
            self.requests += 1
            if self.paused:
                return []
            # One number for every kind, always: what is drawn depends on nothing but the number of draws before.
            drawn = [kind for kind in KINDS if self._random.random() < self.share]
            return [kind for kind in drawn if kind in self.kinds]

    def count(self, kind: str) -> None:
        """Count a fault that is about to be injected: whoever meets it finds it counted."""
        with self._lock:
            self.injected[kind] += 1


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections that come at once are not refused: that would be a fault nobody drew

    def __init__(self, proxy: FaultyProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self.connections: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: tuple[str, int]) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """Close what clients keep alive, so that no thread goes on answering."""
        for connection in list(self.connections):
            with suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections, and answers Expect: 100-continue
    disable_nagle_algorithm = True  # headers and body are two writes; without this, 40 ms each
    server: _Server

    def handle(self) -> None:
        with suppress(ConnectionError):  # of the client: it gave up, or hung up
            super().handle()

    def do_any(self) -> None:
        """Answer one request, or spoil it."""
        request, proxy = self._read_request(), self.server.proxy
        drawn = proxy.draw()
        before = [kind for kind in drawn if kind not in _AFTER and (kind != "409" or request.is_conditional_write)]
        if before:
            proxy.count(before[0])
            self._refuse(before[0])
            return
        answer = _forward(proxy.address, request)
        fits = {"cut": bool(answer.body), "late": request.method in WRITES and answer.status < 300}
        fault = next((kind for kind in drawn if kind in _AFTER and fits[kind]), None)
        if fault:
            proxy.count(fault)
        if fault == "cut":
            self._send(answer._replace(body=answer.body[: len(answer.body) // 2]))
            self.close_connection = True
        else:
            self._send(_error("late") if fault else answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_any  # noqa: N815 - http.server's names

    def _read_request(self) -> _Request:
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        body = self._read_chunked() if chunked else self._read(int(self.headers.get("Content-Length", 0)))
        stripped = self.server.proxy.strip_conditions and self.command in WRITES
        dropped = _OF_THE_CONNECTION | ({"if-none-match"} if stripped else set())
        headers = [(name, value) for name, value in self.headers.items() if name.lower() not in dropped]
        return _Request(self.command, self.path, headers, body)

    def _read_chunked(self) -> bytes:
        pieces = []
        while size := int(self._read_line().partition(b";")[0], 16):
            pieces.append(self._read(size))
            self._read_line()
        while self._read_line().strip():  # trailers
            pass
        return b"".join(pieces)

    def _read_line(self) -> bytes:
        if line := self.rfile.readline():
            return line
        raise ConnectionResetError("the client left in the middle of a body")

    def _read(self, size: int) -> bytes:
        """Read so many bytes; fewer must not be forwarded as if they were the whole."""
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionResetError(f"the client sent {len(body)} of {size} bytes")
        return body

    def _refuse(self, kind: str) -> None:
        if kind in _ERRORS:
            self._send(_error(kind))
            return
        self.close_connection = True
        if kind == "timeout":
            self.server.proxy.closed.wait(self.server.proxy.hold_s)
        else:  # lingering for 0 s turns the close into a reset, if no end was sent before: so close here, both files
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

    def _send(self, answer: _Answer) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers:
            self.send_header(name, value)
        if answer.length is not None:
            self.send_header("Content-Length", answer.length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, *_: object) -> None:
        """Say nothing; what was injected is counted."""


def _forward(address: str, request: _Request) -> _Answer:
    """Ask the server behind, on a connection of its own: moto closes them after every answer."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers:
            connection.putheader(name, value)
        if request.body or request.method in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(request.body)))
        connection.endheaders(request.body or None)
        response = connection.getresponse()
        body = response.read()
    except OSError as error:  # not the client's, so it must not look like one
        raise RuntimeError(f"{address}: the server behind the proxy: {error!r}") from error
    finally:
        connection.close()
    headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _OF_THE_CONNECTION]
    length = response.getheader("Content-Length")
    if length is None and response.status not in (204, 304) and request.method != "HEAD":
        length = str(len(body))
    return _Answer(response.status, response.reason, headers, length, body)


def _error(kind: str) -> _Answer:
    status, code, message = _ERRORS[kind]
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    headers = [("Content-Type", "application/xml")]
    return _Answer(status, http.client.responses[status], headers, str(len(body)), body.encode())
