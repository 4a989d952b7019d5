"""What an index of each key gives: recall on both kinds of query, speed, size: `python -m jobs.benchmark index`.

In: how many made-up vectors, how wide, and FAISS keys. Out: a table, and out/benchmark/index.json. The vectors lie in a
store as the embed job leaves them, and every index is built by the index job itself, in a process of its own.
"""

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from jobs.benchmark.config import IndexBenchmarkConfig
from jobs.benchmark.vectors import MadeUp
from jobs.benchmark.watch import Watch
from pipeline.indexing.publish import read_card, versions
from pipeline.indexing.vectors import lay_out, stream
from pipeline.searching.index import OpenIndex, open_index
from pipeline.store import Store
from pipeline.table import read_receipts, table_folder

TABLE = "made-up"
K = 10


@dataclass(frozen=True)
class Result:
    """One index."""

    factory: str
    nprobe: int | None
    recall_image: float  # at 10, as the card has it
    recall_text: float
    fresh_image: float  # of fresh queries, by an exact search of its own
    fresh_text: float
    latency_ms: float  # of one query on one thread
    qps: float  # in a batch on all threads
    bytes_per_vector: float  # all files of the version
    build_s: float
    job_s: float  # the whole command, from start to end
    peak_bytes: int  # of all its processes, what they share counted once
    published: bool  # whether it reached the target


def index(config: IndexBenchmarkConfig) -> None:
    """Build an index of every key, measure it, print all, and write index.json."""
    out = Path(config.out)
    made = MadeUp(config.rows, config.dimensions, config.seed)
    store = made.write(out / f"index-{config.rows}x{config.dimensions}-{config.seed}", TABLE)
    texts = out / f"index-texts-{config.dimensions}.parquet"
    pq.write_table(pa.table({"vector": list(made.texts(1000, config.seed + 1))}), texts)
    fresh = {"image": made.images(1000, config.seed + 2), "text": made.texts(1000, config.seed + 3)}
    exact = {kind: _exact(store, xq) for kind, xq in fresh.items()}
    results = []
    for factory in config.factories or _factories(config.rows):
        results.append(_measure(config, store, factory, texts, fresh, exact))
        print(results[-1], flush=True)
        (out / "index.json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    _print(config, results)


def _factories(n: int) -> tuple[str, ...]:
    """Name the keys that are worth comparing at a size."""
    lists = f"IVF{round(4 * math.sqrt(n))}"
    codes = (f"{lists},Flat", f"{lists},SQfp16", f"{lists},SQ8", f"{lists}_HNSW32,SQ8")
    return ("Flat", *codes, f"RR,{lists},RaBitQ4", f"RR,{lists},RaBitQ")


def _measure(
    config: IndexBenchmarkConfig,
    store: Store,
    factory: str,
    texts: Path,
    fresh: dict[str, NDArray[np.float32]],
    exact: dict[str, NDArray[np.int64]],
) -> Result:
    """Run the index job as people do, and ask what it made."""
    shutil.rmtree(Path(store.url) / "indexes", ignore_errors=True)
    command = [sys.executable, "-m", "jobs.build_index", "--store", store.url, "--factory", factory]
    command += ["--recall_target", str(config.recall_target), "--text_queries", str(texts), "--seed", str(config.seed)]
    began = time.monotonic()
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with Watch(job.pid) as watch:
        status = job.wait()
    seconds = time.monotonic() - began
    if status not in (0, 3):
        raise RuntimeError(f"{factory}: the index job ended with {status}")
    (version,) = versions(store, TABLE)
    card = read_card(store, TABLE, version)
    opened = open_index(store, TABLE, version)
    found = {kind: _recall(opened, xq, exact[kind]) for kind, xq in fresh.items()}
    return Result(
        factory=factory,
        nprobe=card.nprobe,
        recall_image=card.recall_at_10["image"],
        recall_text=card.recall_at_10["text"],
        fresh_image=found["image"],
        fresh_text=found["text"],
        latency_ms=card.latency_ms,
        qps=card.qps,
        bytes_per_vector=round(sum(card.bytes.values()) / card.ntotal, 1),
        build_s=card.build_seconds,
        job_s=round(seconds, 1),
        peak_bytes=watch.peak_bytes,
        published=status == 0,
    )


def _exact(store: Store, xq: NDArray[np.float32]) -> NDArray[np.int64]:
    """Search all vectors with none of our own code but the reading: ids (n, K)."""
    spans = lay_out(read_receipts(store, table_folder(TABLE)))
    heap = faiss.ResultHeap(len(xq), K, keep_max=True)
    for base, xb, _ in stream(store, table_folder(TABLE), spans):
        scores = xq @ xb.T
        best = np.argsort(-scores, axis=1)[:, :K].astype(np.int64)
        heap.add_result(np.take_along_axis(scores, best, axis=1), best + base)
    heap.finalize()
    ids: NDArray[np.int64] = heap.I
    return ids


def _recall(opened: OpenIndex, xq: NDArray[np.float32], exact: NDArray[np.int64]) -> float:
    _, ids = opened.search(xq, K)
    return round(float(np.mean([np.isin(mine, true).mean() for mine, true in zip(ids, exact, strict=True)])), 4)


def _print(config: IndexBenchmarkConfig, results: list[Result]) -> None:
    table = Table(
        "key", "nprobe", "recall image, text", "fresh image, text", "ms", "QPS", "bytes", "build s", "GB",
        title=f"{config.rows:,} x {config.dimensions}, recall@10 >= {config.recall_target}",
    )  # fmt: skip
    for one in results:
        table.add_row(
            one.factory + ("" if one.published else " (refused)"), str(one.nprobe),
            f"{one.recall_image:.4f} {one.recall_text:.4f}", f"{one.fresh_image:.4f} {one.fresh_text:.4f}",
            f"{one.latency_ms:.2f}", f"{one.qps:.0f}", f"{one.bytes_per_vector:.0f}", f"{one.build_s:.0f}",
            f"{one.peak_bytes / 1e9:.2f}",
        )  # fmt: skip
    Console(width=140).print(table)
