"""What an index of each key gives: recall on both kinds of query, speed, size: `python -m jobs.benchmark index`.

In: how many made-up vectors, how wide, FAISS keys, and peers. Out: tables, and out/benchmark/index.json. The vectors
lie in a store as the embed job leaves them, and every index is built by the index job itself, in a process of its own.
"""

import json
import math
import os
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
from jobs.benchmark.peering import Reached, compare
from jobs.benchmark.vectors import MadeUp
from jobs.benchmark.watch import Watch
from pipeline.indexing.exact import Selection
from pipeline.indexing.publish import read_card, versions
from pipeline.indexing.vectors import lay_out, stream
from pipeline.searching.index import OpenIndex, open_index
from pipeline.store import Store
from pipeline.table import read_receipts, receipt_path, table_folder

TABLE = "made-up"
K = 10
SHARES = (0.5, 0.1, 0.01)  # of the rows, that a filter lets through
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """One index."""

    factory: str
    nprobe: int | None
    recall_image: float  # at 10, as the card has it
    recall_text: float
    fresh_image: float  # of fresh queries, by an exact search of its own
    fresh_text: float
    filtered: dict[str, float]  # the worse of both, by share that a filter lets through: at random, and of one side
    latency_ms: float  # of one query on one thread
    qps: float  # in a batch on all threads
    bytes_per_vector: float  # all files of the version
    build_s: float
    job_s: float  # the whole command, from start to end
    peak_bytes: int  # of all its processes, what they share counted once
    peak_anonymous_bytes: int  # without what they have mapped of files, which can be read again
    published: bool  # whether it reached the target


@dataclass(frozen=True)
class Changed:
    """An index that rows were added to and deleted from, against one built anew of the same rows."""

    share: float
    update_s: float
    rebuild_s: float
    updated: dict[str, float]  # recall@10 of fresh queries, by kind
    rebuilt: dict[str, float]
    deleted_found: int  # deleted rows among all answers


def index(config: IndexBenchmarkConfig) -> None:
    """Build an index of every key, measure it, print all, and write index.json."""
    out = Path(config.out)
    made = MadeUp(config.rows, config.dimensions, config.seed)
    store = made.write(out / f"index-{config.rows}x{config.dimensions}-{config.seed}", TABLE)
    texts = out / f"index-texts-{config.rows}x{config.dimensions}.parquet"
    pq.write_table(pa.table({"vector": list(made.texts(1000, config.seed + 1))}), texts)
    fresh = {"image": made.images(1000, config.seed + 2), "text": made.texts(1000, config.seed + 3)}
    exact = {kind: _exact(store, xq) for kind, xq in fresh.items()}
    results: list[Result] = []
    changed: Changed | None = None
    reached: list[Reached] = []
    factories = config.factories or _factories(config.rows)
    for factory in factories:
        shutil.rmtree(Path(store.url) / "indexes", ignore_errors=True)
        results.append(_measure(config, store, factory, texts, fresh, exact))
        print(results[-1], flush=True)
        if factory == factories[0] and config.changed:
            changed = _change(config, made, store, factory, texts, fresh)
            print(changed, flush=True)
        if factory == factories[0] and config.peers:
            reached = compare(config, store, open_index(store, TABLE), fresh, exact)
        parts = {
            "keys": [asdict(result) for result in results],
            "changed": changed and asdict(changed),
            "peers": [asdict(each) for each in reached],
        }
        (out / "index.json").write_text(json.dumps(parts, indent=1) + "\n")
    _print(config, results, reached)


def _factories(n: int) -> tuple[str, ...]:
    """Name the keys that are worth comparing at a size, the one that is chosen first."""
    lists = f"IVF{round(4 * math.sqrt(n))}"
    codes = (f"{lists},SQ8", f"{lists},Flat", f"{lists},SQfp16", f"{lists}_HNSW32,SQ8")
    return (*codes, f"RR,{lists},RaBitQ4", f"RR,{lists},RaBitQ", "Flat")


def _measure(
    config: IndexBenchmarkConfig,
    store: Store,
    factory: str,
    texts: Path,
    fresh: dict[str, Vectors],
    exact: dict[str, NDArray[np.int64]],
) -> Result:
    """Run the index job as people do, and ask what it made."""
    seconds, watch, status = _job(config, store, factory, texts)
    version = versions(store, TABLE)[0]
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
        filtered=_filtered(opened, fresh),
        latency_ms=card.latency_ms,
        qps=card.qps,
        bytes_per_vector=round(sum(card.bytes.values()) / card.ntotal, 1),
        build_s=card.build_seconds,
        job_s=round(seconds, 1),
        peak_bytes=watch.peak_bytes,
        peak_anonymous_bytes=watch.peak_anonymous_bytes,
        published=status == 0,
    )


def _job(config: IndexBenchmarkConfig, store: Store, factory: str, texts: Path, *more: str) -> tuple[float, Watch, int]:
    """Run the index job in a process of its own, and watch it: seconds, memory, exit status."""
    command = [sys.executable, "-m", "jobs.build_index", "--store", store.url, "--factory", factory, *more]
    command += ["--recall_target", str(config.recall_target), "--text_queries", str(texts), "--seed", str(config.seed)]
    began = time.monotonic()
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with Watch(job.pid) as watch:
        status = job.wait()
    if status not in (0, 3):
        raise RuntimeError(f"{factory}: the index job ended with {status}")
    return time.monotonic() - began, watch, status


def _change(
    config: IndexBenchmarkConfig, made: MadeUp, store: Store, factory: str, texts: Path, fresh: dict[str, Vectors]
) -> Changed:
    """Add and delete rows in a copy of the store, and build there both ways."""
    other = Store(f"{store.url}-changed")
    shutil.rmtree(other.url, ignore_errors=True)
    shutil.copytree(store.url, other.url, copy_function=os.link)
    rows = round(config.changed * config.rows)
    made.add(other, TABLE, "added", config.rows, rows)
    units = lay_out(read_receipts(store, table_folder(TABLE)).values())  # as the first index has them
    gone: list[int] = []
    for place in np.random.default_rng(config.seed).permutation(len(units)):
        if len(gone) + made.unit_rows // 2 > rows:
            break
        gone += range(units[place].base, units[place].base + units[place].rows)
        other.remove(receipt_path(table_folder(TABLE), units[place].receipt.unit))
    update_s, _, _ = _job(config, other, factory, texts)
    opened = open_index(other, TABLE)
    updated = {kind: _recall(opened, xq, opened.search(xq, K, exact=True)[1]) for kind, xq in fresh.items()}
    answers = [
        opened.search(xq, k, nprobe=nprobe)[1] for xq in fresh.values() for k in (10, 1000) for nprobe in (1, 64, None)
    ]
    deleted_found = sum(int(np.isin(ids, gone).sum()) for ids in answers)
    rebuild_s, _, _ = _job(config, other, factory, texts, "--rebuild")
    opened = open_index(other, TABLE)
    rebuilt = {kind: _recall(opened, xq, opened.search(xq, K, exact=True)[1]) for kind, xq in fresh.items()}
    shutil.rmtree(other.url)
    return Changed(config.changed, round(update_s, 1), round(rebuild_s, 1), updated, rebuilt, deleted_found)


def _exact(store: Store, xq: Vectors) -> NDArray[np.int64]:
    """Search all vectors with none of our own code but the reading: ids (n, K)."""
    spans = lay_out(read_receipts(store, table_folder(TABLE)).values())
    heap = faiss.ResultHeap(len(xq), K, keep_max=True)
    for base, xb, _ in stream(store, table_folder(TABLE), spans):
        scores = xq @ xb.T
        best = np.argpartition(-scores, K, axis=1)[:, :K].astype(np.int64)
        heap.add_result(np.take_along_axis(scores, best, axis=1), best + base)
    heap.finalize()
    ids: NDArray[np.int64] = heap.I
    return ids


def _filtered(opened: OpenIndex, fresh: dict[str, Vectors]) -> dict[str, float]:
    """Measure recall behind filters against an exact search behind the same: the worse of both kinds of query."""
    first = np.concatenate([vectors[:, 0] for _, vectors in opened.index.exact.blocks()])
    order = {"random": np.random.default_rng(0).random(len(first)), "one side": -first}
    found = {}
    for name, values in order.items():
        for share in SHARES:
            within = Selection(values <= np.quantile(values, share))
            each = [
                _recall(opened, xq[:300], opened.search(xq[:300], K, within=within, exact=True)[1], within)
                for xq in fresh.values()
            ]
            found[f"{name} {share:g}"] = min(each)
    return found


def _recall(opened: OpenIndex, xq: Vectors, exact: NDArray[np.int64], within: Selection | None = None) -> float:
    _, ids = opened.search(xq, K, within=within)
    return round(float(np.mean([np.isin(true, mine).mean() for mine, true in zip(ids, exact, strict=True)])), 4)


def _print(config: IndexBenchmarkConfig, results: list[Result], reached: list[Reached]) -> None:
    title = f"{config.rows:,} x {config.dimensions}, recall@10 >= {config.recall_target}"
    table = Table(
        "key", "nprobe", "recall image, text", "fresh image, text", "filtered", "ms", "QPS", "bytes", "build s", "GB",
        title=title,
    )  # fmt: skip
    for one in results:
        table.add_row(
            one.factory + ("" if one.published else " (refused)"), str(one.nprobe),
            f"{one.recall_image:.4f} {one.recall_text:.4f}", f"{one.fresh_image:.4f} {one.fresh_text:.4f}",
            f"{min(one.filtered.values()):.4f}", f"{one.latency_ms:.2f}", f"{one.qps:.0f}",
            f"{one.bytes_per_vector:.0f}", f"{one.build_s:.0f}", f"{one.peak_bytes / 1e9:.2f}",
        )  # fmt: skip
    Console(width=150).print(table)
    if reached:
        peers = Table(
            "index", "build s", "QPS image", "QPS text", "by", title=f"{title}: queries a second on 2 threads"
        )
        for each in reached:
            peers.add_row(each.name, str(each.build_s), str(each.qps_image), str(each.qps_text), str(each.settings))
        Console(width=150).print(peers)
