"""Measure this machine, then the pipeline on it: `python -m jobs.benchmark throughput`.

Every claim is a ratio taken in one run: the pipeline's images per second against the ceiling of decoding and encoding
on these very cores. Corpora are made here, weights are random; both cost what real ones cost.
"""

import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from jobs.benchmark.material import make_checkpoint, peak_memory, photograph
from pipeline import compute, model
from pipeline.config import EmbedConfig, EncodeConfig, PreprocessConfig, SourceConfig, ThroughputConfig
from pipeline.embedding.encode import Encode, EncodeSpec
from pipeline.embedding.fit import pixels_of
from pipeline.embedding.run import BLOCK_ROWS, embed
from pipeline.machine import available_cpus
from pipeline.model import PreprocessSpec

DISTINCT_IMAGES = 256  # decoding costs the same each time; drawing does not have to
DECODE_IMAGES = 1024  # per process
ENCODE_SECONDS = 4.0  # per batch size
BATCH_SIZES = (32, 64, 128)
SHARD_ROWS = 1024
ROW_GROUP_ROWS = BLOCK_ROWS  # so that rows are counted as they come, block by block


@dataclass(frozen=True)
class Throughput:
    """What `throughput` measured, all of it in one run; rates in images per second."""

    architecture: str
    precision: str
    images: int
    size: str
    cores: int
    decode_per_core: float
    decode_ceiling: float  # all cores decode
    encode_ceiling: float  # all cores, or the GPU, encode; best batch size
    encode_batch_size: int
    shared_ceiling: float  # both at once on the same cores; without a GPU they share them
    steady: list[float]  # of each pass: mean from the first block written to the last
    whole: list[float]  # of each pass: from the call to its return, actors and model loading included
    ratio_steady: float  # median steady / min(decode_ceiling, encode_ceiling)
    ratio_whole: float
    ratio_shared: float  # median steady / shared_ceiling
    peak_rss_bytes: int  # of all processes, what they share counted once


def throughput(config: ThroughputConfig) -> None:
    """Measure ceilings and pipeline, print them, and write out/benchmark/throughput.json."""
    out = Path(config.out)
    shards = make_corpus(out / f"jpeg-{config.width_px}x{config.height_px}-{config.images}", config)
    checkpoint = model.resolve(str(make_checkpoint(out / f"random-{config.architecture}", config.architecture)))
    spec = checkpoint.preprocess_spec(config.fit, config.decode)
    decode_per_core = measure_decoding(shards, spec, 1)
    decode_ceiling = measure_decoding(shards, spec, available_cpus())
    space = checkpoint.space(spec, None)
    encoder = Encode(EncodeSpec(checkpoint.name, space, spec, precision=config.precision, threads=available_cpus()))
    encode_ceiling, batch_size = measure_encoding(encoder)
    shares_cores = encoder.device.type == "cpu"
    precision = encoder.precision
    del encoder
    shared = 1 / (1 / decode_ceiling + 1 / encode_ceiling) if shares_cores else min(decode_ceiling, encode_ceiling)
    compute.start_ray()
    with peak_memory() as peak, tempfile.TemporaryDirectory(dir=out, prefix="store-") as store:
        passes = [run_pipeline(config, store, shards, checkpoint.name, number) for number in range(config.passes)]
    steady, whole = [pair[0] for pair in passes], [pair[1] for pair in passes]
    ceiling = min(decode_ceiling, encode_ceiling)
    result = Throughput(
        architecture=config.architecture,
        precision=precision,
        images=config.images,
        size=f"{config.width_px} x {config.height_px}",
        cores=available_cpus(),
        decode_per_core=round(decode_per_core, 1),
        decode_ceiling=round(decode_ceiling, 1),
        encode_ceiling=round(encode_ceiling, 1),
        encode_batch_size=batch_size,
        shared_ceiling=round(shared, 1),
        steady=[round(rate, 1) for rate in steady],
        whole=[round(rate, 1) for rate in whole],
        ratio_steady=round(median(steady) / ceiling, 3),
        ratio_whole=round(median(whole) / ceiling, 3),
        ratio_shared=round(median(steady) / shared, 3),
        peak_rss_bytes=peak[0],
    )
    (out / "throughput.json").write_text(json.dumps(asdict(result), indent=1) + "\n")
    table = Table("what", "value", title="throughput, images per second")
    for name, value in asdict(result).items():
        table.add_row(name, str(value))
    Console().print(table)


def make_corpus(folder: Path, config: ThroughputConfig) -> list[Path]:
    """Write shards of JPEGs with the spectrum of photographs; those of an earlier run are used again."""
    count = -(-config.images // SHARD_ROWS)
    shards = [folder / f"{number:05d}.parquet" for number in range(count)]
    if all(shard.exists() for shard in shards):
        return shards
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = [photograph(rng, config.width_px, config.height_px) for _ in range(min(DISTINCT_IMAGES, config.images))]
    for number, shard in enumerate(shards):
        rows = range(number * SHARD_ROWS, min(config.images, (number + 1) * SHARD_ROWS))
        columns = {"key": [f"{row:09d}" for row in rows], "image": [images[row % len(images)] for row in rows]}
        pq.write_table(pa.table(columns), shard.with_suffix(".tmp"), row_group_size=ROW_GROUP_ROWS)
        shard.with_suffix(".tmp").rename(shard)
    return shards


def measure_decoding(shards: list[Path], spec: PreprocessSpec, processes: int) -> float:
    """Decode and fit, without the step around it, one process a core, all of them at once: images per second."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_decode, [(shards[0], spec, 1)] * processes))  # processes start and import here
        started = time.perf_counter()
        counts = list(pool.map(_decode, [(shards[0], spec, DECODE_IMAGES)] * processes))
        return sum(counts) / (time.perf_counter() - started)


def _decode(task: tuple[Path, PreprocessSpec, int]) -> int:
    shard, spec, wanted = task
    images = _images(shard)
    for i in range(wanted):
        pixels_of(images[i % len(images)], spec)
    return wanted


@lru_cache(maxsize=1)
def _images(shard: Path) -> list[bytes]:
    """Hold a shard's images in memory, so that reading is not timed with decoding."""
    images: list[bytes] = pq.read_table(shard, columns=["image"])["image"].to_pylist()
    return images


def measure_encoding(encoder: Encode) -> tuple[float, int]:
    """Encode the same pixels again and again: images per second at the best batch size, and that size."""
    spec = encoder.spec.preprocess
    shape = (max(BATCH_SIZES), 3, spec.height_px, spec.width_px)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    best = (0.0, 0)
    for batch_size in BATCH_SIZES:
        encoder.batch_size = batch_size
        encoder.encode_images(pixels[:batch_size])
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < ENCODE_SECONDS:
            encoder.encode_images(pixels)
            done += len(pixels)
        best = max(best, (done / (time.perf_counter() - started), batch_size))
    return best


def run_pipeline(
    config: ThroughputConfig, store: str, shards: list[Path], checkpoint: str, number: int
) -> tuple[float, float]:
    """Run the embed job into a table of its own: images per second, steady and whole."""
    report = embed(
        EmbedConfig(
            store=store,
            table=f"pass-{number}",
            model=checkpoint,
            source=SourceConfig(name="jpegs", path=tuple(map(str, shards)), key_column="key"),
            preprocess=PreprocessConfig(fit=config.fit, decode=config.decode),
            encode=EncodeConfig(precision=config.precision),
            unit_rows=ROW_GROUP_ROWS,
        )
    )
    # Ray hands a block on when it has the next: the first to arrive was not the only one encoded by then, and the last
    # two arrive together. One block less makes the mean honest.
    after_first = config.images - BLOCK_ROWS
    steady = report.steady_images_per_s * (after_first - BLOCK_ROWS) / after_first
    return steady, report.rows_in / report.seconds
