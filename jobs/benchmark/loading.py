"""A load on a server, from a process of its own: `python -m jobs.benchmark.loading <load.json>`.

In: requests, and how many at a time, for how long. Out: a line of JSON: how many a second were answered, in what time,
and with which statuses. HTTP/1.1 by hand over kept connections: a client library would take as long as the server.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Load:
    """What is asked, by how many, for how long."""

    host: str
    port: int
    requests: str  # a file of JSON lines: method, path, body
    clients: int
    seconds: float
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Loaded:
    """What came of it."""

    qps: float  # answered with 200
    p50_ms: float  # of these
    p95_ms: float
    p99_ms: float
    statuses: dict[str, int]
    refused_p99_ms: float | None  # of answers with 429 or 503
    refused_max_ms: float | None


Timed = tuple[int, float]  # status, milliseconds


def main(path: str) -> None:
    """Put the load on, and print what came of it."""
    load = Load(**json.loads(Path(path).read_text()))
    print(json.dumps(asdict(asyncio.run(loaded(load)))))


async def loaded(load: Load) -> Loaded:
    """Let clients ask one request after the other, each a different one, until the time is over."""
    requests = [_written(load, json.loads(line)) for line in Path(load.requests).read_text().splitlines()]
    end = time.perf_counter() + load.seconds
    began = time.perf_counter()
    each = await asyncio.gather(*(_client(load, requests, number, end) for number in range(load.clients)))
    seconds = time.perf_counter() - began
    timed = [one for client in each for one in client]
    good = np.array([ms for status, ms in timed if status == 200])
    refused = np.array([ms for status, ms in timed if status in (429, 503)])
    p50, p95, p99 = np.percentile(good, (50, 95, 99)) if len(good) else (np.nan,) * 3
    return Loaded(
        qps=round(len(good) / seconds, 1),
        p50_ms=round(float(p50), 2),
        p95_ms=round(float(p95), 2),
        p99_ms=round(float(p99), 2),
        statuses={str(status): count for status, count in Counter(status for status, _ in timed).items()},
        refused_p99_ms=round(float(np.percentile(refused, 99)), 2) if len(refused) else None,
        refused_max_ms=round(float(refused.max()), 2) if len(refused) else None,
    )


def _written(load: Load, request: dict[str, str]) -> bytes:
    body = request.get("body", "").encode()
    headers = [("Host", f"{load.host}:{load.port}"), *load.headers, ("Content-Length", str(len(body)))]
    if body:
        headers.append(("Content-Type", "application/json"))
    lines = [f"{request['method']} {request['path']} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _client(load: Load, requests: list[bytes], number: int, end: float) -> list[Timed]:
    """Ask until the end; where the server says when to come back, come back then."""
    timed: list[Timed] = []
    streams = None
    turn = number * 7919  # each client begins elsewhere
    while time.perf_counter() < end:
        began = time.perf_counter()
        try:
            if streams is None:
                streams = await asyncio.open_connection(load.host, load.port, limit=1 << 24)
            reader, writer = streams
            writer.write(requests[turn % len(requests)])
            status, headers = await _answer(reader)
        except (OSError, asyncio.IncompleteReadError):
            status, headers, streams = 0, {}, None
        timed.append((status, (time.perf_counter() - began) * 1e3))
        turn += 1
        if headers.get("connection") == "close":
            streams = None
        if status in (429, 503):
            wait_ms = float(headers.get("retry-after-ms") or 1e3 * float(headers.get("retry-after", 1)))
            await asyncio.sleep(min(wait_ms / 1e3 * random.uniform(1.0, 1.5), max(0.0, end - time.perf_counter())))
    return timed


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read one answer whole: its status and its headers."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    elif headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).partition(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    return int(head[0].split()[1]), headers


if __name__ == "__main__":
    main(sys.argv[1])
