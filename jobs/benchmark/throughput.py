"""Measure this machine, then the pipeline on it: `python -m jobs.benchmark throughput`.

Every claim is a ratio taken in one run: images per second of the job against the ceiling of decoding and encoding on
these very cores. Corpora are made here, weights are random unless given; both cost what real ones cost.
"""

import io
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from jobs.benchmark.config import Corpus, ThroughputConfig
from jobs.benchmark.material import make_checkpoint, photograph, saved
from jobs.benchmark.watch import Watch
from pipeline import model
from pipeline.compute import CPU_BLOCK_ROWS
from pipeline.embedding.batching import BatchSizes
from pipeline.embedding.encode import CPU_BATCH_SIZES, GPU_BATCH_SIZES, Encode
from pipeline.embedding.fit import pixels_of
from pipeline.machine import available_cpus
from pipeline.model import EncodeSpec, PreprocessSpec

logger = logging.getLogger(__name__)

Call = Callable[[], None]

DECODE_SECONDS = 6.0
ENCODE_SECONDS = 4.0  # per batch size and layout
SHARED_SECONDS = 10.0
MATMULS = 20 if torch.cuda.is_available() else 2  # without waiting between them
# Decoding costs the same each time; drawing does not have to.
DISTINCT: dict[Corpus, int] = {"jpeg-640x480": 256, "jpeg-4000x3000": 16, "png-512": 64, "mixed": 240}
SHARD_ROWS = 1024
ROW_GROUP_ROWS = CPU_BLOCK_ROWS  # so that rows are counted as they come, block by block
BLOCK_ROWS = re.compile(r'"block_rows": (\d+)')
PROGRESS = re.compile(r"unit=\S+ rows=\d+ .*images_per_s=([\d.]+)")


@dataclass(frozen=True)
class Throughput:
    """What was measured on one corpus, all of it in one run; rates in images per second."""

    model: str
    precision: str
    device: str
    images: int
    image_bytes: int  # mean
    corpus_bytes: int  # of the shards, each of which is read once
    cores: int
    decode_per_core: float
    decode_ceiling: float  # all cores decode
    encode_ceiling: float  # all cores, or the GPU, encode; best batch size and layout
    encode_layout: str
    shared_ceiling: float  # decoding and encoding beside each other: on a CPU they share its cores
    gflop_per_image: float
    matmul_tflops: float  # of this device in this precision: 4096 x 4096 x 4096
    encode_utilisation: float  # of the encode ceiling: model FLOPs against that rate
    steady: list[float]  # of each pass: mean from the first block written to the last
    whole: list[float]  # of each pass: from the start of the process to its end
    ratio_steady: float  # median steady / shared_ceiling
    ratio_whole: float  # median whole / shared_ceiling
    ratio_steady_to_smaller: float  # median steady / min(decode_ceiling, encode_ceiling)
    utilisation: float  # median steady: model FLOPs against matmul_tflops
    busy: dict[str, float]  # share of all cores' time that each stage used in the median pass, start to end
    gpu_busy: float | None
    peak_rss_bytes: int  # of all processes of a pass, what they share counted once
    peak_store_bytes: int  # of Ray's object store


def throughput(config: ThroughputConfig) -> None:
    """Measure ceilings and job on every corpus, print them, and write out/benchmark/throughput.json."""
    out = Path(config.out)
    name = config.model or str(make_checkpoint(out / f"random-{config.architecture}", config.architecture))
    results = {corpus: _measure(config, corpus, name) for corpus in config.corpora}
    first = asdict(results[config.corpora[0]])
    everything = {**first, "corpora": {corpus: asdict(result) for corpus, result in results.items()}}
    (out / "throughput.json").write_text(json.dumps(everything, indent=1) + "\n")
    table = Table("images per second", *results, title="throughput")
    for field in first:
        table.add_row(field, *(str(getattr(result, field)) for result in results.values()))
    Console().print(table)


def _measure(config: ThroughputConfig, corpus: Corpus, name: str) -> Throughput:
    out = Path(config.out)
    shards = make_corpus(out / f"{corpus}-{config.images}", corpus, config.images)
    checkpoint = model.resolve(name)
    spec = checkpoint.preprocess_spec(config.fit, config.decode)
    wanted = EncodeSpec(name, checkpoint.space(spec, None), spec, precision=config.precision, threads=available_cpus())
    decode_per_core = measure_decoding(shards[0], spec, 1)
    decode_ceiling = measure_decoding(shards[0], spec, available_cpus())
    encode_ceiling, layout = measure_encoding(wanted)
    batch_size = int(layout.split()[-1])
    encoder = Encode(replace(wanted, batch_size=batch_size))
    shared = measure_shared(shards[0], encoder, decode_ceiling, encode_ceiling)
    gflop, tflops = count_gflop(name), measure_matmul(encoder)
    device, precision = encoder.device.type, encoder.precision
    del encoder
    passes = [run_job(config, name, shards) for _ in range(config.passes)]
    steady, whole = [each[0] for each in passes], [each[1] for each in passes]
    middle = sorted(passes, key=lambda each: each[1])[len(passes) // 2]
    watch, core_seconds = middle[2], available_cpus() * config.images / middle[1]
    return Throughput(
        model=config.model or f"random {config.architecture}",
        precision=precision,
        device=device,
        images=config.images,
        image_bytes=sum(map(len, _images(shards[0]))) // len(_images(shards[0])),
        corpus_bytes=sum(shard.stat().st_size for shard in shards),
        cores=available_cpus(),
        decode_per_core=round(decode_per_core, 1),
        decode_ceiling=round(decode_ceiling, 1),
        encode_ceiling=round(encode_ceiling, 1),
        encode_layout=layout,
        shared_ceiling=round(shared, 1),
        gflop_per_image=round(gflop, 2),
        matmul_tflops=round(tflops, 3),
        encode_utilisation=round(encode_ceiling * gflop / tflops / 1000, 3),
        steady=[round(rate, 1) for rate in steady],
        whole=[round(rate, 1) for rate in whole],
        ratio_steady=round(median(steady) / shared, 3),
        ratio_whole=round(median(whole) / shared, 3),
        ratio_steady_to_smaller=round(median(steady) / min(decode_ceiling, encode_ceiling), 3),
        utilisation=round(median(steady) * gflop / tflops / 1000, 3),
        busy={stage: round(seconds / core_seconds, 3) for stage, seconds in watch.cpu_seconds.items()},
        gpu_busy=watch.gpu_busy,
        peak_rss_bytes=max(each[2].peak_bytes for each in passes),
        peak_store_bytes=max(each[2].peak_store_bytes for each in passes),
    )


def make_corpus(folder: Path, corpus: Corpus, count: int) -> list[Path]:
    """Write shards of pictures with the spectrum of photographs; those of an earlier run are used again."""
    shards = [folder / f"{number:05d}.parquet" for number in range(-(-count // SHARD_ROWS))]
    if all(shard.exists() for shard in shards):
        return shards
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = [_picture(corpus, rng, number) for number in range(min(DISTINCT[corpus], count))]
    for number, shard in enumerate(shards):
        rows = range(number * SHARD_ROWS, min(count, (number + 1) * SHARD_ROWS))
        columns = {"key": [f"{row:09d}" for row in rows], "image": [images[row % len(images)] for row in rows]}
        temporary = shard.with_suffix(".tmp")
        pq.write_table(pa.table(columns), temporary, row_group_size=ROW_GROUP_ROWS, use_dictionary=False)
        temporary.rename(shard)
    return shards


def _picture(corpus: Corpus, rng: np.random.Generator, number: int) -> bytes:
    """Make one picture of a corpus; of a mixed one, seven of ten are small JPEGs, two PNGs, one a JPEG of a phone."""
    if corpus == "mixed":
        parts: dict[int, Corpus] = {0: "jpeg-4000x3000", 1: "png-512", 2: "png-512"}
        corpus = parts.get(number % 10, "jpeg-640x480")
    if corpus == "png-512":
        return saved(Image.open(io.BytesIO(photograph(rng, 512, 512))), "PNG")
    width, height = map(int, corpus.removeprefix("jpeg-").split("x"))
    return photograph(rng, width, height)


def measure_decoding(
    shard: Path, spec: PreprocessSpec, processes: int, seconds: float = DECODE_SECONDS, meanwhile: Call | None = None
) -> float:
    """Decode and fit, without the step around it, in so many processes at once: images per second of all."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(_decode, [(shard, spec, 0.1)] * processes))  # processes start and import here
        running = [pool.submit(_decode, (shard, spec, seconds)) for _ in range(processes)]
        if meanwhile is not None:
            meanwhile()
        return sum(each.result() for each in running)


def _decode(task: tuple[Path, PreprocessSpec, float]) -> float:
    shard, spec, seconds = task
    images = _images(shard)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        pixels_of(images[done % len(images)], spec)
        done += 1
    return done / (time.perf_counter() - started)


@lru_cache(maxsize=1)
def _images(shard: Path) -> list[bytes]:
    """Hold some of a shard's images in memory, so that reading is not timed with decoding."""
    images: list[bytes] = pq.ParquetFile(shard).read_row_group(0, columns=["image"])["image"].to_pylist()
    return images


def measure_encoding(wanted: EncodeSpec) -> tuple[float, str]:
    """Encode the same pixels again and again: images per second in the best layout, and what that is."""
    cores, on_gpu = available_cpus(), torch.cuda.is_available()
    rates: dict[str, float] = {}
    for processes in (1,) if on_gpu or cores == 1 else (1, cores):
        spec = replace(wanted, threads=cores // processes)
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for size in GPU_BATCH_SIZES if on_gpu else CPU_BATCH_SIZES:
                list(pool.map(_encode, [(spec, size, 0.0)] * processes))  # loads where it has not, and warms up
                done = list(pool.map(_encode, [(spec, size, ENCODE_SECONDS)] * processes))
                rates[f"{processes} x {cores // processes} threads, batch {size}"] = sum(done)
    logger.info("encode images_per_s=%s", {layout: round(rate, 1) for layout, rate in rates.items()})
    best = max(rates, key=lambda layout: rates[layout])
    return rates[best], best


def _encode(task: tuple[EncodeSpec, int, float]) -> float:
    spec, batch_size, seconds = task
    encoder = _encoder(spec)
    encoder.batch_sizes = BatchSizes((batch_size,), "")
    return _encoding_rate(encoder, max(batch_size, 64), seconds)


@lru_cache(maxsize=1)
def _encoder(spec: EncodeSpec) -> Encode:
    return Encode(spec)


def _encoding_rate(encoder: Encode, rows: int, seconds: float) -> float:
    spec = encoder.spec.preprocess
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 3, spec.height_px, spec.width_px), np.uint8)
    done, started = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - started < seconds:
        encoder.encode_images(pixels)
        done += len(pixels)
    return done / (time.perf_counter() - started)


def measure_shared(shard: Path, encoder: Encode, decode_ceiling: float, encode_ceiling: float) -> float:
    """Say how many images per second can be both decoded and encoded, by letting both go on at once for a while.

    Beside each other they reach d and e images per second, which is d / decode_ceiling + e / encode_ceiling of what the
    machine can: about 1 where they share cores, up to 2 where they do not. As much, in balance, is the ceiling.
    """
    encoded = []

    def encode() -> None:
        encoded.append(_encoding_rate(encoder, max(64, encoder.batch_sizes.best), SHARED_SECONDS))

    decoded = measure_decoding(shard, encoder.spec.preprocess, available_cpus(), SHARED_SECONDS, encode)
    capacity = decoded / decode_ceiling + encoded[0] / encode_ceiling
    return min(decode_ceiling, encode_ceiling, capacity / (1 / decode_ceiling + 1 / encode_ceiling))


def count_gflop(name: str) -> float:
    """Count what one image costs the checkpoint's own image tower, in 10^9 floating-point operations."""
    checkpoint = model.resolve(name)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        tower = open_clip.create_model(f"local-dir:{checkpoint.folder}", device="meta", load_weights=False).visual
        size = tower.image_size
        tower.eval()(torch.empty(1, 3, *((size, size) if isinstance(size, int) else size)))
    return float(counter.get_total_flops()) / 1e9


def measure_matmul(encoder: Encode) -> float:
    """Multiply 4096 x 4096 matrices on the encoder's device, in its precision: 10^12 operations per second."""
    side = 4096
    a, b = (torch.randn(side, side, device=encoder.device).to(encoder.dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(MATMULS):
            product = a @ b
        float(product[0, 0])  # waits for the device
        seconds.append((time.perf_counter() - started) / MATMULS)
    return float(2 * side**3 / min(seconds) / 1e12)


def run_job(config: ThroughputConfig, name: str, shards: list[Path]) -> tuple[float, float, Watch]:
    """Run the embed job as people do, in a process of its own: images per second steady and whole, and what it cost.

    Raises:
        RuntimeError: the job failed.
    """
    with tempfile.TemporaryDirectory(dir=config.out, prefix="store-") as store:
        started = time.perf_counter()
        job = subprocess.Popen(
            [
                *(sys.executable, "-m", "jobs.embed", "--store", store, "--model", name, "--source.name", "pictures"),
                *("--source.path", str(shards[0].parent), "--source.key_column", "key"),
                *("--preprocess.fit", config.fit, "--preprocess.decode", config.decode),
                *("--unit_rows", str(ROW_GROUP_ROWS)),
                *(("--encode.precision", config.precision) if config.precision else ()),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with Watch(job.pid) as watch:
            said = job.communicate()[1]
        seconds = time.perf_counter() - started
    if job.returncode != 0:
        raise RuntimeError(f"jobs.embed: status {job.returncode}: {said[-2000:]}")
    rates = [float(rate) for rate in PROGRESS.findall(said)]
    # Ray hands a block on when it has the next: the first to arrive was not the only one encoded by then, and the last
    # two arrive together. One block less makes the mean honest.
    block_rows = max(ROW_GROUP_ROWS, int(BLOCK_ROWS.findall(said)[0]))
    counted, honest = config.images - ROW_GROUP_ROWS, config.images - 2 * block_rows
    if honest <= 0:
        raise RuntimeError(f"{config.images} images are too few for blocks of {block_rows}; wanted many times that")
    return rates[-1] * honest / counted, config.images / seconds, watch
