"""Where the graph, its planning and its commits stop scaling: `python -m jobs.benchmark scaling`.

The graph is the embed job's own, on simulated clusters of Ray; reading, writing and committing are real. Preprocessors
make blank pixels, and encoders wait as long as a real one would compute: what is left is what the framework and the
driver cost. Planning, resuming and committing are measured on made-up footers and receipts (planning.py), and designs
for more than 10^9 rows beside them (beyond.py).
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from jobs.benchmark.beyond import merge_by_ranges
from jobs.benchmark.config import ScalingConfig
from jobs.benchmark.planning import SHARD_ROWS, TABLE, UNIT_ROWS, measure_planning
from jobs.benchmark.watch import every
from pipeline import compute, schema
from pipeline.compute import Request
from pipeline.config import FetchConfig, SourceConfig
from pipeline.embedding.dataflow import TEXT_BYTES, Steps, dataflow
from pipeline.embedding.fetch import fetch_spec
from pipeline.embedding.plan import Shard, cut, survey
from pipeline.embedding.read import ReadSpec, UnitSource
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.reuse import ReuseSpec
from pipeline.embedding.write import WriteSpec
from pipeline.lease import Lease
from pipeline.model import OPENAI_MEAN, OPENAI_STD, EncodeSpec, PreprocessSpec
from pipeline.store import Store
from pipeline.table import table_folder

GPUS_PER_NODE = 8
NOTE_S = 0.1  # between notes of the driver's processor time
# 192 bytes: bytes are not the question
PIXELS = PreprocessSpec(height_px=8, width_px=8, mean=OPENAI_MEAN, std=OPENAI_STD)
D = 16


@dataclass(frozen=True)
class Point:
    """What one simulated cluster did."""

    encoders: int
    nodes: int
    rows: int
    block_rows: int
    seconds: float  # while all encoders were there and had work to come
    images_per_s: float  # in that time
    images_per_s_per_encoder: float
    of_linear: float  # share of that time in which encoders computed; what is missing they waited for rows
    driver_cpu_s_per_million: float  # in that time
    driver_busy: float  # CPU seconds of the driver for each second of it


class Blank:
    """Preprocesses nothing: pixels are zeros, at once."""

    def __init__(self, spec: PreprocessSpec, max_rows: int) -> None:
        self.spec, self.max_rows = spec, max_rows

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Do as Preprocess does."""
        for start in range(0, max(1, batch.num_rows), self.max_rows):
            piece = batch.slice(start, self.max_rows)
            levels = pa.array(np.zeros(piece.num_rows * self.spec.pixel_bytes, np.uint8))
            pixels = pa.FixedSizeListArray.from_arrays(levels, self.spec.pixel_bytes)
            yield schema.replace_columns(piece, [schema.IMAGE], {schema.PIXELS: pixels})


class Waiting:
    """Encodes nothing, and takes as long: the model of its spec is a rate in images per second."""

    def __init__(self, spec: EncodeSpec) -> None:
        self.images_per_s = float(spec.model)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do as Encode does."""
        began = time.time()
        time.sleep(batch.num_rows / self.images_per_s)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(batch.num_rows * D, np.float32)), D)
        span = f"{os.getpid()} {began} {time.time()} {batch.num_rows}"  # a part's encoders come to the driver
        new = {schema.VECTOR: vectors, schema.ENCODER: pa.repeat(span, batch.num_rows)}
        return schema.replace_columns(batch, [schema.PIXELS], new)


def scaling(config: ScalingConfig) -> None:
    """Measure all of it, print it, and write out/benchmark/scaling.json."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    planning, sharded, compacted = measure_planning(config)
    ranged = merge_by_ranges(config.out, config.merged_rows)
    points = [_measure(config, encoders) for encoders in config.encoders]
    parts: dict[str, Sequence[Any]] = {  # dataclasses, one a row
        "planning": [planning], "sharded": [sharded], "compacted": [compacted], "ranged": [ranged], "points": points,
    }  # fmt: skip
    result: dict[str, Any] = {name: asdict(rows[0]) for name, rows in parts.items()}
    result["points"] = [asdict(point) for point in points]
    (out / "scaling.json").write_text(json.dumps(result, indent=1) + "\n")
    for title, rows in parts.items():
        table = Table(*asdict(rows[0]), title=title)
        for row in rows:
            table.add_row(*(str(value) for value in asdict(row).values()))
        Console(width=160).print(table)


def _measure(config: ScalingConfig, encoders: int) -> Point:
    rows = int(encoders * config.images_per_s * config.seconds)
    nodes = -(-encoders // GPUS_PER_NODE)
    with tempfile.TemporaryDirectory(dir=config.out, prefix="scaling-") as folder, _cluster(encoders):
        units = cut(_write_shards(Path(folder) / "shards", rows), UNIT_ROWS)
        store = Store(f"{folder}/store")
        pools = compute.pools(
            Request(
                row_bytes=PIXELS.pixel_bytes + TEXT_BYTES,
                written_bytes=4 * D + TEXT_BYTES,
                unit_rows=UNIT_ROWS,
                picture_bytes=0,
                image_bytes=1,
                fetches=False,
            )
        )
        source = UnitSource(units, ReadSpec("image", "bytes", "key", pa.schema([]), max_image_bytes=1 << 20), {})
        steps = Steps(
            fetch=fetch_spec(FetchConfig(), 0),
            reuse=ReuseSpec(store.url, table_folder(TABLE)),
            preprocess=PIXELS,
            encode=EncodeSpec(str(config.images_per_s), "", PIXELS),
            write=WriteSpec(store.url, table_folder(TABLE), "waiting", "waiting", D, pa.schema([]), ()),
        )
        with Lease(store, table_folder(TABLE)) as lease:
            ledger = Ledger(store, table_folder(TABLE), (unit.shard for unit in units), units, lease)
            spans: set[str] = set()
            notes: list[tuple[float, float]] = []
            with every(NOTE_S, lambda: notes.append((time.time(), time.process_time()))):
                for part in dataflow(source, steps, pools, {}, Blank, Waiting).iter_rows():
                    ledger.add(part)
                    spans.update(part["encoders"])
        if ledger.pending:
            raise RuntimeError(f"{len(ledger.pending)} of {len(units)} units have no receipt")
    start, stop, busy_s, done = _window(spans)
    driver = _between(notes, start, stop)
    return Point(
        encoders=encoders,
        nodes=nodes,
        rows=rows,
        block_rows=pools.block_rows,
        seconds=round(stop - start, 1),
        images_per_s=round(done / (stop - start), 1),
        images_per_s_per_encoder=round(done / (stop - start) / encoders, 1),
        of_linear=round(busy_s / (stop - start) / encoders, 3),
        driver_cpu_s_per_million=round(driver / done * 1e6, 2),
        driver_busy=round(driver / (stop - start), 3),
    )


def _window(spans: set[str]) -> tuple[float, float, float, float]:
    """Give the time in which every encoder was there and had work to come, the seconds computed in it, and the rows."""
    read = [(pid, float(began), float(ended), int(rows)) for pid, began, ended, rows in map(str.split, spans)]
    pids = {pid for pid, *_ in read}
    start = max(min(began for pid, began, _, _ in read if pid == each) for each in pids)
    stop = min(max(ended for pid, _, ended, _ in read if pid == each) for each in pids)
    if stop <= start:
        raise RuntimeError("some encoders were done before others began: ask for more --seconds")
    inside = [(max(began, start), min(ended, stop), rows / (ended - began)) for _, began, ended, rows in read]
    inside = [(began, ended, rate) for began, ended, rate in inside if began < ended]
    return (
        start,
        stop,
        sum(ended - began for began, ended, _ in inside),
        sum((ended - began) * rate for began, ended, rate in inside),
    )


def _between(notes: list[tuple[float, float]], start: float, stop: float) -> float:
    """Give the processor seconds used between two times of day, by notes of both."""
    times, spent = zip(*notes, strict=True)
    first, last = np.interp([start, stop], times, spent)
    return float(last - first)


@contextmanager
def _cluster(encoders: int) -> Iterator[None]:
    """Start a head that computes nothing, and nodes of eight logical GPUs and CPUs each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for first in range(0, encoders, GPUS_PER_NODE):
            gpus = min(GPUS_PER_NODE, encoders - first)
            cluster.add_node(num_cpus=max(4, gpus), num_gpus=gpus, object_store_memory=512 << 20)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level=logging.WARNING)
        compute.start_ray()
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _write_shards(folder: Path, rows: int) -> tuple[Shard, ...]:
    folder.mkdir(parents=True)
    for first in range(0, rows, SHARD_ROWS):
        keys = [f"{row:09d}" for row in range(first, min(rows, first + SHARD_ROWS))]
        table = pa.table({"key": keys, "image": pa.array([b"\xff"] * len(keys), pa.binary())})
        pq.write_table(table, folder / f"{first:09d}.parquet", row_group_size=UNIT_ROWS // 8)
    return survey(SourceConfig(name="waiting", path=str(folder))).shards
