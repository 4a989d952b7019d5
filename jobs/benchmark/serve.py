"""What the endpoint answers a second, and how soon: `python -m jobs.benchmark serve`.

In: how many made-up vectors, and a model of random weights whose space they are said to be of; and the demo. Out: a
table, and out/benchmark/serve.json. `jobs.serve` runs as people start it; the load comes from another process, and
every figure stands beside that of an empty handler of the same application, asked just before and after: once without
a body, and once with the same body, which Serve brings to a replica by calls of its own.
"""

import itertools
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from jobs.benchmark.config import ServeBenchmarkConfig
from jobs.benchmark.loading import Load, Loaded
from jobs.benchmark.material import make_checkpoint
from jobs.benchmark.vectors import MadeUp
from pipeline.embedding.encode import Encode
from pipeline.indexing.publish import read_current
from pipeline.machine import available_cpus
from pipeline.model import EncodeSpec, resolve
from pipeline.searching.index import open_index, use_threads
from pipeline.store import Store

TABLE = "made-up"
K, MANY = 10, 3000
QUERIES = 2000
START_S = 180.0
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "black", "white")
THINGS = ("dog", "cat", "bicycle", "house", "tree", "boat", "cup", "star", "circle", "mountain", "face", "street")
Request = dict[str, str]


@dataclass(frozen=True)
class Point:
    """One kind of query, by so many clients at once: medians of the passes."""

    kind: str
    clients: int
    qps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    empty_qps: float  # of the empty handler, before and after
    ratio: float  # qps by empty_qps: the median of the passes' ratios
    same_body_qps: float  # of the empty handler, given the same bodies
    same_body_ratio: float


def serve(config: ServeBenchmarkConfig) -> None:
    """Serve made-up vectors and the demo, load both, print all, and write serve.json."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    store = _made_up(config, out)
    parts: dict[str, Any] = {"rows": config.rows, "cpus": available_cpus()}  # what is measured has any type
    with _endpoint(store.url, out / "serve.log") as (port, process):
        points = [
            _point(config, port, out, kind, requests, clients)
            for kind, requests in _requests(config, store).items()
            for clients in (config.clients if kind == "vector" else (config.clients[-1],))
        ]
        parts["recall_at_10"] = _recall(store, config, port)
        parts["overload"] = _overload(config, port, out, process)
    parts["text_tower_qps"] = _tower_qps(config, store)
    if (Path(config.demo_store) / "embeddings").is_dir():
        with _endpoint(config.demo_store, out / "serve-demo.log") as (port, _):
            texts = [_search([{"text": text}], K) for text in _texts(QUERIES)]
            points += [_point(config, port, out, "text, demo's model", texts, clients) for clients in config.clients]
    parts["points"] = [asdict(point) for point in points]
    (out / "serve.json").write_text(json.dumps(parts, indent=1) + "\n")
    _print(points, parts)


def _made_up(config: ServeBenchmarkConfig, out: Path) -> Store:
    """Write vectors that are said to be of a model of random weights, and build their index as people do."""
    checkpoint = resolve(str(make_checkpoint(out / f"random-{config.architecture}", config.architecture)))
    made = MadeUp(config.rows, checkpoint.embed_dim, 0, checkpoint)
    store = made.write(out / f"serve-{config.rows}-{config.architecture}", TABLE)
    if read_current(store, TABLE) is None:
        texts = out / f"serve-texts-{config.rows}.parquet"
        pq.write_table(pa.table({"vector": list(made.texts(1000, 1))}), texts)
        command = [sys.executable, "-m", "jobs.build_index", "--store", store.url, "--text_queries", str(texts)]
        subprocess.run(command, check=True)
    return store


@contextmanager
def _endpoint(store: str, log: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Run the endpoint until the block is left: its port, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with log.open("w") as said:
        command = [sys.executable, "-m", "jobs.serve", "--store", store, "--port", str(port)]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + START_S
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the endpoint did not start: see {log}")
            time.sleep(0.5)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _requests(config: ServeBenchmarkConfig, store: Store) -> dict[str, list[Request]]:
    """Make the kinds of query, each of its requests another one."""
    index = open_index(store, TABLE)
    space, made = index.card.space, MadeUp(config.rows, index.card.d, 0)
    images, texts = (each.tolist() for each in (made.images(QUERIES, 2), made.texts(QUERIES, 3)))
    mixed = [vector for pair in zip(images, texts, strict=True) for vector in pair][:QUERIES]
    rows = np.random.default_rng(0).choice(config.rows, QUERIES, replace=False)
    return {
        "vector": [_search([{"vector": vector}], K, space=space) for vector in mixed],
        "vector, like pictures": [_search([{"vector": vector}], K, space=space) for vector in images],
        "row": [_search([{"id": f"row-{number}"}], K) for number in rows],
        f"clip-retrieval, {MANY} ids": [_knn(vector) for vector in mixed[:200]],
        "text": [_search([{"text": text}], K) for text in _texts(QUERIES)],
    }


def _search(query: list[dict[str, Any]], k: int, **options: Any) -> Request:  # as the API has them
    return {"method": "POST", "path": "/v1/search", "body": json.dumps({"query": query, "k": k, **options})}


def _knn(vector: list[float]) -> Request:
    body = {"embedding_input": vector, "modality": "image", "num_images": 40, "num_result_ids": MANY}
    return {"method": "POST", "path": "/knn-service", "body": json.dumps({**body, "indice_name": None})}


def _texts(count: int) -> list[str]:
    """Write captions, no two alike."""
    rng = np.random.default_rng(0)
    pairs = [(rng.choice(COLOURS), rng.choice(THINGS), rng.choice(COLOURS), rng.choice(THINGS)) for _ in range(count)]
    return [f"a {a} {b} beside a {c} {d}, number {number}" for number, (a, b, c, d) in enumerate(pairs)]


def _point(
    config: ServeBenchmarkConfig, port: int, out: Path, kind: str, requests: list[Request], clients: int
) -> Point:
    """Load with a kind of query, and before and after with nothing to do."""
    empty: list[Request] = [{"method": "GET", "path": "/livez"}]
    same_body = [{**empty[0], "body": request["body"]} for request in requests]

    def put(what: list[Request], seconds: float = config.seconds) -> Loaded:
        return _loaded(port, out, what, clients, seconds)

    put(requests, 2.0)
    empties, bodies, loads = [put(empty)], [put(same_body)], []
    for _ in range(config.passes):
        loads.append(put(requests))
        empties.append(put(empty))
        bodies.append(put(same_body))
    if unanswered := [each.statuses for each in loads if set(each.statuses) != {"200"}]:
        raise RuntimeError(f"{kind}: not all were answered: {unanswered}")
    around, around_bodies = (
        [(first.qps + second.qps) / 2 for first, second in itertools.pairwise(asked)] for asked in (empties, bodies)
    )

    def middle(of: Callable[[Loaded], float]) -> float:
        return round(median(of(each) for each in loads), 2)

    point = Point(
        kind=kind,
        clients=clients,
        qps=middle(lambda each: each.qps),
        p50_ms=middle(lambda each: each.p50_ms),
        p95_ms=middle(lambda each: each.p95_ms),
        p99_ms=middle(lambda each: each.p99_ms),
        empty_qps=round(median(around), 1),
        ratio=round(median(each.qps / near for each, near in zip(loads, around, strict=True)), 3),
        same_body_qps=round(median(around_bodies), 1),
        same_body_ratio=round(median(each.qps / near for each, near in zip(loads, around_bodies, strict=True)), 3),
    )
    print(point, flush=True)
    return point


def _loaded(port: int, out: Path, requests: list[Request], clients: int, seconds: float) -> Loaded:
    file, spec = out / "serve-requests.jsonl", out / "serve-load.json"
    file.write_text("".join(json.dumps(request) + "\n" for request in requests))
    spec.write_text(json.dumps(asdict(Load("127.0.0.1", port, str(file), clients, seconds))))
    command = [sys.executable, "-m", "jobs.benchmark.loading", str(spec)]
    return Loaded(**json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def _recall(store: Store, config: ServeBenchmarkConfig, port: int) -> dict[str, float]:
    """Compare answers over HTTP with an exact search, for queries of both kinds that nothing was tuned with."""
    index = open_index(store, TABLE)
    made = MadeUp(config.rows, index.card.d, 0)
    use_threads(available_cpus())
    found = {}
    for kind, xq in {"image": made.images(200, 12), "text": made.texts(200, 13)}.items():
        exact = index.search(xq, K, exact=True)[1]
        hits = []
        for vector, wanted in zip(xq, exact, strict=True):
            request = _search([{"vector": vector.tolist()}], K, space=index.card.space, columns=[])
            answer = _answer(port, request)
            ids = [hit["id"] for hit in answer["hits"]]
            hits.append(np.isin([index.row_ids[int(number)].as_py() for number in wanted], ids).mean())
        found[kind] = round(float(np.mean(hits)), 4)
    return found


def _answer(port: int, request: Request) -> Any:  # JSON
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{request['path']}",
        request["body"].encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked, timeout=60) as reply:
        return json.load(reply)


def _overload(config: ServeBenchmarkConfig, port: int, out: Path, process: psutil.Process) -> dict[str, Any]:
    """Let ten times as many clients ask as a replica takes, and see what the refused are told, and what is after it."""
    queries = _requests(config, Store(str(out / f"serve-{config.rows}-{config.architecture}")))["vector"]
    before = _loaded(port, out, queries, config.clients[-1], config.seconds)
    memory = [_memory(process)]
    loaded = _loaded(port, out, queries, 10 * config.overload_clients, config.overload_s)
    memory.append(_memory(process))
    began = time.monotonic()
    after = _loaded(port, out, queries, config.clients[-1], 1.0)
    while after.p99_ms > 2 * before.p99_ms and time.monotonic() - began < 30:
        after = _loaded(port, out, queries, config.clients[-1], 1.0)
    return {
        "clients": 10 * config.overload_clients,
        "before": asdict(before),
        "during": asdict(loaded),
        "memory_before_bytes": memory[0],
        "memory_after_bytes": memory[1],
        "after": asdict(after),
        "normal_after_s": round(time.monotonic() - began, 1),
    }


def _memory(process: psutil.Process) -> int:
    """Add up what all processes of the endpoint have to themselves."""
    return sum(each.memory_full_info().uss for each in [process, *process.children(recursive=True)])


def _tower_qps(config: ServeBenchmarkConfig, store: Store) -> float:
    """Measure the text tower alone, in batches, with nothing around it."""
    index = open_index(store, TABLE)
    checkpoint = resolve(str(Path(config.out) / f"random-{config.architecture}"))
    spec = checkpoint.preprocess_spec("pad")
    encode = Encode(EncodeSpec(checkpoint.name, index.card.space, spec, threads=available_cpus()))
    texts = _texts(512)
    encode.encode_texts(texts[:64])
    rates = []
    for _ in range(config.passes):
        began = time.perf_counter()
        for first in range(0, len(texts), 64):
            encode.encode_texts(texts[first : first + 64])
        rates.append(len(texts) / (time.perf_counter() - began))
    return round(median(rates), 1)


def _print(points: list[Point], parts: dict[str, Any]) -> None:
    table = Table("query", "clients", "QPS", "p50 ms", "p95 ms", "p99 ms", "empty QPS", "ratio", "same body", "ratio")
    for point in points:
        table.add_row(*(str(value) for value in asdict(point).values()))
    console = Console(width=140)
    console.print(table)
    console.print({name: value for name, value in parts.items() if name != "points"})
