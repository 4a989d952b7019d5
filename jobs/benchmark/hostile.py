"""Bad images through the embed job: `python -m jobs.benchmark hostile --images pillow-13.0.0/Tests/images`.

Every file of the folder as it is; seeded mutations (flipped bytes, cuts, splices) of those that decode; giants, just
within the limits. What must hold: every row embedded or rejected with a reason, no worker lost, memory bounded.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from ray._private import state

from jobs.benchmark.config import HostileConfig
from jobs.benchmark.material import saved
from jobs.benchmark.watch import Watch
from pipeline import compute, model
from pipeline.config import EmbedConfig, SourceConfig
from pipeline.embedding.run import embed
from pipeline.embedding.sandbox import Sandbox
from pipeline.errors import IncompleteError
from pipeline.model import PreprocessSpec

ROW_GROUP_ROWS = 500
MOST_FLIPS = 12
GIANT_PX = 9_900
MAX_GIANT_BYTES = 16 * GIANT_PX**2  # as decoded, over the fill colour, turned, and in RGB: four bytes each
MAX_EXTRA_BYTES = 1 << 30  # beyond what the same run takes for pictures that are fine


@dataclass(frozen=True)
class Hostile:
    """What came of the rows, and the most memory that any moment took, all processes together."""

    rows: int
    embedded: int
    rejected: int
    reasons: dict[str, int]
    seconds: float
    peak_bytes: int
    workers_lost: int


def hostile(config: HostileConfig) -> None:
    """Run good pictures, the folder and the mutations; print and write out/benchmark/hostile.json.

    Raises:
        IncompleteError: memory went beyond the bound, or a worker was lost.
    """
    out, files = Path(config.out), sorted(path for path in Path(config.images).rglob("*") if path.is_file())
    out.mkdir(parents=True, exist_ok=True)
    images = [path.read_bytes() for path in files]
    checkpoint = model.resolve(config.model)
    good = _good(images, checkpoint.preprocess_spec("pad"), config.good)
    rng = np.random.default_rng(config.seed)
    corpora = {
        "good": [good[i % len(good)] for i in range(len(images))],
        "folder": images,
        "mutations": [_mutated(good, rng) for _ in range(config.mutations)],
        "giants": _giants(),
    }
    with tempfile.TemporaryDirectory(dir=out, prefix="hostile-") as folder:
        for (
            name,
            rows,
        ) in corpora.items():  # all before the first run: each has in memory what writing left
            pq.write_table(pa.table({"image": rows}), f"{folder}/{name}.parquet", row_group_size=ROW_GROUP_ROWS)
        counts = {name: len(rows) for name, rows in corpora.items()}
        del corpora, images, good, rows
        compute.start_ray()
        results = {name: _run(config, folder, name, count) for name, count in counts.items()}
    (out / "hostile.json").write_text(json.dumps({name: asdict(r) for name, r in results.items()}, indent=1) + "\n")
    for name, result in results.items():
        print(name, asdict(result))
    extra = {name: result.peak_bytes - results["good"].peak_bytes for name, result in results.items()}
    print("memory beyond that of good pictures, MB:", {name: round(size / 1e6) for name, size in extra.items()})
    lost = sum(result.workers_lost for result in results.values())
    print(f"workers lost: {lost}")
    if max(extra["folder"], extra["mutations"]) > MAX_EXTRA_BYTES or extra["giants"] > MAX_GIANT_BYTES or lost:
        raise IncompleteError(
            f"{extra} bytes beyond good pictures, at most {MAX_EXTRA_BYTES} wanted, for giants {MAX_GIANT_BYTES}; "
            f"{lost} workers lost"
        )


def _good(images: list[bytes], spec: PreprocessSpec, count: int) -> list[bytes]:
    """Choose images that decode, spread over the folder."""
    sandbox = Sandbox(spec)
    fine = [image for image, reject in zip(images, sandbox.pixels(images)[1], strict=True) if reject is None]
    sandbox.close()
    return [fine[i] for i in np.linspace(0, len(fine) - 1, count).astype(int)]


def _giants() -> list[bytes]:
    """Make pictures of nearly as many pixels as the default allows, in the modes that cost most."""
    red = Image.new("RGBA", (GIANT_PX, GIANT_PX), (255, 0, 0, 128))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    return [
        saved(red, "PNG", compress_level=1),
        saved(red.convert("RGB"), "JPEG", exif=turned),
        saved(red.quantize(4), "PNG", transparency=0),
        saved(red.convert("L").convert("F"), "TIFF", compression="tiff_adobe_deflate"),
        saved(Image.new("I;16", red.size, 999), "PNG", compress_level=1),
        saved(red.convert("RGB").resize((GIANT_PX // 4, GIANT_PX * 4)), "JPEG"),
    ]


def _mutated(images: list[bytes], rng: np.random.Generator) -> bytes:
    image = bytearray(images[rng.integers(len(images))])
    kind = rng.integers(3)
    if kind == 0:
        for place in rng.integers(0, len(image), rng.integers(1, MOST_FLIPS + 1)):
            image[place] ^= int(rng.integers(1, 256))
    elif kind == 1:
        del image[int(rng.integers(len(image))) :]
    else:
        other = images[rng.integers(len(images))]
        start, stop = np.sort(rng.integers(0, len(other), 2))
        place = int(rng.integers(len(image)))
        image[place : place + int(stop - start)] = other[start:stop]
    return bytes(image)


def _run(config: HostileConfig, folder: str, name: str, rows: int) -> Hostile:
    restarts_before = _actor_restarts()
    with Watch() as watch:
        report = embed(
            EmbedConfig(
                store=f"{folder}/store",
                model=config.model,
                source=SourceConfig(name=name, path=f"{folder}/{name}.parquet"),
                max_reject_fraction=1.0,
            )
        )
    if report.embedded + report.rejected != rows:
        raise IncompleteError(f"{rows} rows in, {report.embedded} embedded, {report.rejected} rejected")
    lost = _actor_restarts() - restarts_before
    return Hostile(rows, report.embedded, report.rejected, report.reasons, report.seconds, watch.peak_bytes, lost)


def _actor_restarts() -> int:
    """Count how often any actor of this Ray had to be started again; Ray tells only its own dashboard, or so."""
    return sum(int(actor["NumRestarts"]) for actor in state.actors().values())
