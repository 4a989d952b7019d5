"""What scaled decoding costs in likeness, and gains in time: `python -m jobs.benchmark decoding`.

Photographs are saved as JPEGs of the sizes that phones and the web have, decoded exactly and scaled, fitted, encoded.
Beside it stands what bfloat16 costs on the same vectors, and how alike different photographs are.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.benchmark.config import DecodingConfig
from jobs.benchmark.material import make_checkpoint, photographs, saved
from pipeline import model
from pipeline.config import Decode, Fit
from pipeline.embedding.encode import Encode
from pipeline.embedding.fit import pixels_of
from pipeline.model import EncodeSpec

LONG_EDGES_PX = (640, 1024, 2048, 4032)  # the web, the web, a screenshot, a phone of 12 million pixels
FITS: tuple[Fit, ...] = ("pad", "model")
DECODES: tuple[Decode, ...] = ("exact", "scaled")


@dataclass(frozen=True)
class Decoding:
    """One checkpoint, fit and size: cosines over the photographs, and images per second on one core."""

    checkpoint: str
    fit: Fit
    long_edge_px: int
    cosine_median: float  # scaled to exact
    cosine_least: float
    bf16_cosine_least: float  # bfloat16 to float32, both exact
    other_photographs: float  # median cosine between different photographs, exact
    pixel_levels: float  # mean absolute difference, of 255
    exact_per_s: float
    scaled_per_s: float


def decoding(config: DecodingConfig) -> None:
    """Measure every checkpoint, fit and size; print a table in Markdown and write out/benchmark/decoding.json."""
    out = Path(config.out)
    folders = [Path(folder) for folder in config.models]
    folders += [make_checkpoint(out / f"random-{name}", name) for name in config.architectures]
    images = photographs()
    rows = [row for folder in folders for row in _measure(folder, images, config.passes)]
    out.mkdir(parents=True, exist_ok=True)
    (out / "decoding.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print("| " + " | ".join(asdict(rows[0])) + " |\n|" + "---|" * len(asdict(rows[0])))
    for row in rows:
        print("| " + " | ".join(str(value) for value in asdict(row).values()) + " |")


def _measure(folder: Path, images: list[Image.Image], passes: int) -> list[Decoding]:
    checkpoint = model.resolve(str(folder))
    planned = checkpoint.preprocess_spec("pad")
    space = checkpoint.space(planned, None)
    encoder = Encode(EncodeSpec(checkpoint.name, space, planned, precision="fp32"))
    coarse = Encode(EncodeSpec(checkpoint.name, space, planned, precision="bf16"))
    rows = []
    for edge_px in LONG_EDGES_PX:
        files = [saved(_sized(image, edge_px), "JPEG", quality=90) for image in images]
        for fit in FITS:
            pixels, rates = {}, {}
            for decode in DECODES:
                spec = checkpoint.preprocess_spec(fit, decode)
                seconds = []
                for _ in range(passes):
                    started = time.process_time()
                    pixels[decode] = np.stack([pixels_of(file, spec) for file in files])
                    seconds.append(time.process_time() - started)
                rates[decode] = round(len(files) / median(seconds), 1)
            exact, scaled = encoder.encode_images(pixels["exact"]), encoder.encode_images(pixels["scaled"])
            cosines, precise = _cosines(exact, scaled), _cosines(exact, coarse.encode_images(pixels["exact"]))
            difference = np.abs(pixels["exact"].astype(int) - pixels["scaled"]).mean()
            alike = (exact @ exact.T)[np.triu_indices(len(exact), 1)]
            rows.append(
                Decoding(
                    checkpoint=folder.name if folder.name != "model" else "demo",
                    fit=fit,
                    long_edge_px=edge_px,
                    cosine_median=round(float(np.median(cosines)), 6),
                    cosine_least=round(float(cosines.min()), 6),
                    bf16_cosine_least=round(float(precise.min()), 6),
                    other_photographs=round(float(np.median(alike)), 3),
                    pixel_levels=round(float(difference), 2),
                    exact_per_s=rates["exact"],
                    scaled_per_s=rates["scaled"],
                )
            )
    return rows


def _sized(image: Image.Image, long_edge_px: int) -> Image.Image:
    """Enlarge or shrink a photograph, and give it the fine grain that enlarging does not."""
    scale = long_edge_px / max(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(0).normal(0, 4, (resized.height, resized.width, 1))
    return Image.fromarray(np.clip(np.asarray(resized) + grain, 0, 255).astype(np.uint8))


def _cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray((one.astype(np.float64) * other).sum(axis=1))
