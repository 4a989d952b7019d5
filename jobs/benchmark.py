"""Measure this machine, then the pipeline on it: `python -m jobs.benchmark throughput`.

Every claim is a ratio taken in one run: the pipeline's images per second against the ceiling of decoding and encoding
on these very cores. Corpora are made here, weights are random; both cost what real ones cost.
"""

import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import open_clip
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from jobs.launch import launch
from pipeline import compute, model, schema
from pipeline.config import EmbedConfig, EncodeConfig, PreprocessConfig, SourceConfig, ThroughputConfig
from pipeline.embedding.encode import Encode, EncodeSpec
from pipeline.embedding.preprocess import Preprocess
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
    peak_rss_bytes: int  # private memory of all processes, without the object store


def throughput(config: ThroughputConfig) -> None:
    """Measure ceilings and pipeline, print them, and write out/benchmark/throughput.json."""
    out = Path(config.out)
    shards = make_corpus(out / f"jpeg-{config.width_px}x{config.height_px}-{config.images}", config)
    checkpoint = model.resolve(str(make_checkpoint(out / f"random-{config.architecture}", config.architecture)))
    spec = checkpoint.preprocess_spec("pad", config.decode, 64 << 20, 100_000_000)
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
    images = [_photograph(rng, config.width_px, config.height_px) for _ in range(min(DISTINCT_IMAGES, config.images))]
    for number, shard in enumerate(shards):
        rows = range(number * SHARD_ROWS, min(config.images, (number + 1) * SHARD_ROWS))
        columns = {"key": [f"{row:09d}" for row in rows], "image": [images[row % len(images)] for row in rows]}
        pq.write_table(pa.table(columns), shard.with_suffix(".tmp"), row_group_size=ROW_GROUP_ROWS)
        shard.with_suffix(".tmp").rename(shard)
    return shards


def _photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
    """Make noise whose amplitude falls with frequency as it does in photographs (Field 1987: 1/f); JPEG quality 85."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    falloff = 1 / np.maximum(np.hypot(down, across), 1 / max(width, height))
    phases = np.exp(2j * np.pi * rng.random((3, *falloff.shape)))
    planes = np.fft.irfft2(falloff * phases, (height, width))
    planes = planes[:1] + 0.3 * planes  # colours of photographs mostly move together
    pixels = np.clip(128 + 48 * planes / planes.std(), 0, 255).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(encoded, "JPEG", quality=85)
    return encoded.getvalue()


def make_checkpoint(folder: Path, architecture: str) -> Path:
    """Write a published-layout checkpoint of an OpenCLIP architecture with random weights."""
    if not (folder / model.WEIGHTS_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": {}}
        state = open_clip.create_model(architecture).state_dict()
        (folder / model.CONFIG_FILE).write_text(json.dumps(config, indent=1))
        save_file({key: value.contiguous() for key, value in state.items()}, folder / model.WEIGHTS_FILE)
    return folder


def measure_decoding(shards: list[Path], spec: PreprocessSpec, processes: int) -> float:
    """Run the preprocess step alone, one process a core, all of them at once: images per second."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_decode, [(shards[0], spec, 1)] * processes))  # processes start and import here
        started = time.perf_counter()
        counts = list(pool.map(_decode, [(shards[0], spec, DECODE_IMAGES)] * processes))
        return sum(counts) / (time.perf_counter() - started)


def _decode(task: tuple[Path, PreprocessSpec, int]) -> int:
    shard, spec, wanted = task
    step, done = Preprocess(spec), 0
    images = _images(shard)
    while done < wanted:
        for start in range(0, min(len(images), wanted - done), BLOCK_ROWS):
            piece = images.slice(start, min(BLOCK_ROWS, wanted - done))
            empty = pa.nulls(len(piece), pa.string())
            columns = {schema.IMAGE: piece, schema.ROW: pa.array(range(len(piece)), pa.int64())}
            step(pa.table({**columns, schema.REASON: empty, schema.ERROR: empty}))
            done += len(piece)
    return done


@lru_cache(maxsize=1)
def _images(shard: Path) -> pa.ChunkedArray:
    """Hold a shard's images in memory, so that reading is not timed with decoding."""
    return pq.read_table(shard, columns=["image"])["image"].cast(pa.large_binary())


def measure_encoding(encoder: Encode) -> tuple[float, int]:
    """Encode the same pixels again and again: images per second at the best batch size, and that size."""
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES), 3, *encoder.image_size), np.uint8)
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
            preprocess=PreprocessConfig(decode=config.decode),
            encode=EncodeConfig(precision=config.precision),
            unit_rows=ROW_GROUP_ROWS,
        )
    )
    # Ray hands a block on when it has the next: the first to arrive was not the only one encoded by then, and the last
    # two arrive together. One block less makes the mean honest.
    after_first = config.images - BLOCK_ROWS
    steady = report.steady_images_per_s * (after_first - BLOCK_ROWS) / after_first
    return steady, report.rows_in / report.seconds


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Watch the private memory of this process and all below it; the list's one value is the peak so far, in bytes."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            peak[0] = max(peak[0], sum(_private_bytes(process) for process in processes))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def _private_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


if __name__ == "__main__":
    if sys.argv[1:2] != ["throughput"]:
        sys.exit("usage: python -m jobs.benchmark throughput [--images N …]; --help after it lists all flags")
    sys.exit(launch(ThroughputConfig, throughput, "jobs.benchmark throughput", sys.argv[2:]))
