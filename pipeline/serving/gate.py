"""What every request passes before a route sees it, and every reply after: hosts, keys, limits, headers.

In: ASGI. Out: ASGI, or a refusal in RFC 9457's form. Keys are known by their SHA-256 only, and compared in constant
time, all of them every time. Knows nothing of searching.
"""

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import InputError
from pipeline.serving.body import Body
from pipeline.serving.problems import PROBLEM_JSON, OverloadedError, Problem
from pipeline.serving.telemetry import Telemetry

Role = Literal["read", "admin"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = "/livez"  # needs no key
ADMIN = ("/metrics", "/v1/admin/")  # need an admin's
WORK = ("/v1/search", "/v1/rows/", "/v1/embeddings", "/knn-service", "/metadata")  # counts against max_waiting
UPLOAD = "/v1/search/upload"  # takes a file; all others JSON, whatever they call it
EMBEDDINGS = "/v1/embeddings"  # whose clients look for errors in OpenAI's form
LEAST_RETRY_MS = 50
RETRY_MS_EACH = 10  # between those who were refused, so that they come back a hundred a second
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^][:@/\s]+)(?::[0-9]*)?")
HEADERS = (
    # One origin, no inline code, no frames: what a caption says stays text, whatever it says.
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


@dataclass(frozen=True)
class Key:
    """A key that is valid, as its digest."""

    role: Role
    sha256: str


@dataclass(frozen=True)
class GateSpec:
    """What may pass."""

    keys: tuple[Key, ...]
    allowed_hosts: tuple[str, ...]  # (): any
    cors_origins: tuple[str, ...]
    max_body_bytes: int
    max_waiting: int


def read_keys(file: str | None) -> tuple[Key, ...]:
    """Read a file of keys, one a line, admins' behind the word admin.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    if file is None:
        return ()
    try:
        lines = [line.split() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"api_key_file {file}: {error}") from error
    if not lines:
        raise InputError(f"api_key_file {file}: wanted a key a line, got none")
    if any(len(words) > 2 or (len(words) == 2 and words[0] not in ("read", "admin")) for words in lines):
        raise InputError(f"api_key_file {file}: wanted lines of a key, or of 'read' or 'admin' and a key")
    return tuple(
        Key("admin" if words[0] == "admin" and len(words) == 2 else "read", _sha256(words[-1])) for words in lines
    )


def hosts_for(host: str, allowed: Iterable[str]) -> tuple[str, ...]:
    """Say which names requests may be for, of an endpoint that binds ``host``; (): any."""
    named = tuple(name.lower() for name in allowed)
    return (*LOOPBACK, *named) if host in LOOPBACK else named


class Gate:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, spec: GateSpec, telemetry: Telemetry) -> None:
        self.app, self.spec, self.telemetry = app, spec, telemetry
        self.working = 0
        self.mean_s = 0.0  # of what was answered last, weighted
        self.refused, self.refused_since = 0, 0.0  # in the second that began then

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["path"] = re.sub("^/{2,}", "/", scope["path"])  # clip-retrieval's front-end doubles it
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        is_work = scope["path"].startswith(WORK)
        began, status = time.perf_counter(), 0
        body = Body(receive, headers, self.spec.max_body_bytes, is_json=scope["path"] != UPLOAD)
        self.telemetry.in_flight.inc()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *HEADERS]}
                if not await body.discard():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        refusal = self._refusal(scope, headers, is_work=is_work)
        self.working += is_work and refusal is None
        try:
            if refusal is None:
                await self.app(scope, body, counted)
            else:
                await _answer(counted, refusal, scope["path"])
        except Exception:
            if status == 0:
                raise
            # It is answered and logged (api.py); a server would log it again, and close the connection.
        finally:
            self.working -= is_work and refusal is None
            seconds = time.perf_counter() - began
            if is_work and status != 429:
                self.mean_s += 0.1 * (seconds - self.mean_s)
            self._count(scope, status or 500, seconds)

    def _refusal(self, scope: Scope, headers: dict[bytes, str], *, is_work: bool) -> "Problem | OverloadedError | None":
        """Say why a request may not pass."""
        if self.spec.allowed_hosts and _name(headers.get(b"host", "")) not in self.spec.allowed_hosts:
            return Problem(421, "unknown_host", "this is not the host that was asked for; see --allowed_hosts")
        if (refusal := self._unauthorized(scope["path"], headers.get(b"authorization", ""))) is not None:
            return refusal
        is_foreign = headers.get(b"sec-fetch-site", "none") == "cross-site"
        if is_foreign and scope["method"] != "GET" and headers.get(b"origin") not in self.spec.cors_origins:
            return Problem(403, "cross_site", "a page of another site may not post here; see --cors_origins")
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length) > self.spec.max_body_bytes:
            return Problem(413, "body_too_large", f"wanted at most {self.spec.max_body_bytes} bytes, got {length}")
        if is_work and self.working >= self.spec.max_waiting:
            self.telemetry.refused.inc()
            return OverloadedError(self._retry_after_ms())
        return None

    def _retry_after_ms(self) -> int:
        """Say when it may be worth another try: the later, the more were told so in this second.

        Those who come back then are as many as can be refused beside the work; all at once, they would take its place.
        """
        now = time.monotonic()
        if now - self.refused_since > 1.0:
            self.refused_since, self.refused = now, 0
        self.refused += 1
        return max(LEAST_RETRY_MS, math.ceil(1e3 * self.mean_s), self.refused * RETRY_MS_EACH)

    def _unauthorized(self, path: str, authorization: str) -> Problem | None:
        if not self.spec.keys or path == OPEN:
            return None
        given = _sha256(_given(authorization))
        matches = [hmac.compare_digest(given, key.sha256) for key in self.spec.keys]  # all, every time
        roles = {key.role for key, is_match in zip(self.spec.keys, matches, strict=True) if is_match}
        if not roles:
            return Problem(401, "unauthorized", "wanted 'Authorization: Bearer <key>' with a valid key")
        if path.startswith(ADMIN) and "admin" not in roles:
            return Problem(403, "forbidden", "wanted the key of an admin")
        return None

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        self.telemetry.in_flight.dec()
        route = getattr(scope.get("route"), "path", "none")  # as it was declared: ids make no series of their own
        self.telemetry.requests.labels(route, str(status)).inc()
        self.telemetry.seconds.labels(route).observe(seconds)


def problem_body(path: str, problem: Problem) -> dict[str, Any]:
    """Write an error down; for clients of OpenAI's API, which is what RFC 9457 leaves room for, also in their words."""
    body: dict[str, Any] = asdict(problem)
    if path == EMBEDDINGS:
        kind = "server_error" if problem.status >= 500 else "invalid_request_error"
        body["error"] = {"message": problem.detail, "type": kind, "param": None, "code": problem.code}
    return body


def problem_headers(error: "Problem | OverloadedError | Any") -> dict[str, str]:
    """Give the headers of a refusal."""
    if isinstance(error, OverloadedError):
        seconds = math.ceil(error.retry_after_ms / 1e3)
        return {"retry-after": str(seconds), "retry-after-ms": str(error.retry_after_ms)}
    if error.status == 401:
        return {"www-authenticate": 'Basic realm="rayclip", charset="UTF-8"'}
    return {}


async def _answer(send: Send, refusal: Problem | OverloadedError, path: str) -> None:
    problem = refusal if isinstance(refusal, Problem) else Problem(refusal.status, refusal.code, str(refusal))
    content = json.dumps(problem_body(path, problem)).encode()
    headers = {"content-type": PROBLEM_JSON, "content-length": str(len(content)), **problem_headers(refusal)}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})


def _given(authorization: str) -> str:
    """Take the key out of a header: a bearer's token, or the password that a browser asked for."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return ""


def _name(host: str) -> str:
    """Cut a Host header down to the name; "" of what is none."""
    found = HOST.fullmatch(host)
    return "" if found is None else found[1].strip("[]").lower()


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
