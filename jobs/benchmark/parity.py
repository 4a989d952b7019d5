"""Our vectors against OpenCLIP's own, architecture by architecture: `python -m jobs.benchmark parity`.

The reference is open_clip.create_model_and_transforms, its encode_image and encode_text, its transform and its
tokenizer; for fit = "pad", which is ours, some lines of Pillow before OpenCLIP's last two steps. Weights are random,
so columns say how alike the vectors of different photographs are, and the cosines of what is left without their mean:
parity counts for little where all vectors are alike.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image

from jobs.benchmark.config import ParityConfig
from jobs.benchmark.material import make_checkpoint, photographs, saved
from pipeline import model
from pipeline.config import Fit, Precision
from pipeline.embedding.encode import Encode
from pipeline.embedding.fit import pixels_of
from pipeline.errors import IncompleteError
from pipeline.model import EncodeSpec

logger = logging.getLogger(__name__)

TEXTS = [
    "a photo of a cat",
    "a small red cup of coffee on the road",
    "The Rocket, in the blue sky!",
    "a drawing of a green dog with a large face and the sky and the road",
]
FITS: tuple[Fit, ...] = ("pad", "model")
PRECISIONS: tuple[tuple[Precision, str], ...] = (("fp32", ""), ("bf16", "_bf16"))  # and what the columns' names end in
FP32_BAR, BF16_BAR = 0.9999, 0.999


@dataclass(frozen=True)
class Parity:
    """Minimum cosines of one architecture: ours in float32, then in bfloat16, against the reference in float32."""

    architecture: str
    pad: float
    model: float
    text: float
    pad_bf16: float
    model_bf16: float
    text_bf16: float
    centred: float  # as model, after the mean vector of the photographs is taken off: what tells them apart
    other_photographs: float  # median cosine between the reference's vectors of different photographs, fit = "model"
    other_texts: float


class Reference:
    """OpenCLIP as its documentation says to use it."""

    def __init__(self, folder: Path) -> None:
        location = f"local-dir:{folder}"
        self.model, _, self.transform = open_clip.create_model_and_transforms(location)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(location)

    @torch.inference_mode()
    def images(self, images: list[Image.Image], fit: Fit) -> NDArray[np.float32]:
        """Encode pictures: (n, d), norm 1."""
        pixels = torch.stack([self.transform(image) if fit == "model" else self._padded(image) for image in images])
        return np.asarray(self.model.encode_image(pixels, normalize=True).numpy(), np.float32)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Encode texts: (n, d), norm 1."""
        return np.asarray(self.model.encode_text(self.tokenizer(texts), normalize=True).numpy(), np.float32)

    def _padded(self, image: Image.Image) -> torch.Tensor:
        size = self.model.visual.image_size
        edge_px = size if isinstance(size, int) else size[0]  # all that are measured here are square
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        resized = square.resize((edge_px, edge_px), Image.Resampling.BICUBIC)
        to_tensor, normalise = self.transform.transforms[-2:]
        pixels: torch.Tensor = normalise(to_tensor(resized))
        return pixels


def parity(config: ParityConfig) -> None:
    """Measure every architecture, print a table in Markdown and write out/benchmark/parity.json.

    Raises:
        IncompleteError: a cosine is below its bar.
    """
    out = Path(config.out)
    images = photographs()
    rows = [measure(out / f"random-{architecture}", architecture, images) for architecture in config.architectures]
    (out / "parity.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print("| " + " | ".join(asdict(rows[0])) + " |\n|" + "---|" * len(asdict(rows[0])))
    for row in rows:
        print("| " + " | ".join(str(value) for value in asdict(row).values()) + " |")
    missed = [row.architecture for row in rows if not _is_enough(row)]
    if missed:
        raise IncompleteError(f"below {FP32_BAR} in float32 or {BF16_BAR} in bfloat16: {', '.join(missed)}")


def _is_enough(row: Parity) -> bool:
    in_bf16 = (row.pad_bf16, row.model_bf16, row.text_bf16)
    return min(row.pad, row.model, row.text, row.centred) >= FP32_BAR and min(in_bf16) >= BF16_BAR


def measure(folder: Path, architecture: str, images: list[Image.Image]) -> Parity:
    """Compare a checkpoint of random weights, made in the folder unless it is there, with OpenCLIP's model of it."""
    checkpoint = model.resolve(str(make_checkpoint(folder, architecture)))
    reference = Reference(folder)
    expected = {
        "pad": reference.images(images, "pad"),
        "model": reference.images(images, "model"),
        "text": reference.texts(TEXTS),
    }
    del reference
    encoded, specs = [saved(image, "PNG") for image in images], {fit: checkpoint.preprocess_spec(fit) for fit in FITS}
    pixels = {fit: np.stack([pixels_of(image, spec) for image in encoded]) for fit, spec in specs.items()}
    cosines, mean = {}, expected["model"].mean(axis=0)
    for precision, suffix in PRECISIONS:
        space = checkpoint.space(specs["model"], None)
        encoder = Encode(EncodeSpec(checkpoint.name, space, specs["model"], precision))
        for fit in FITS:
            cosines[f"{fit}{suffix}"] = _least(encoder.encode_images(pixels[fit]), expected[fit])
        if precision == "fp32":
            cosines["centred"] = _least(encoder.encode_images(pixels["model"]) - mean, expected["model"] - mean)
        cosines[f"text{suffix}"] = _least(encoder.encode_texts(TEXTS), expected["text"])
    result = Parity(
        architecture,
        **cosines,
        other_photographs=_alike(expected["model"]),
        other_texts=_alike(expected["text"]),
    )
    logger.info("%s", result)
    return result


def _least(ours: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    products = (ours.astype(np.float64) * expected).sum(axis=1)
    lengths = np.linalg.norm(ours.astype(np.float64), axis=1) * np.linalg.norm(expected.astype(np.float64), axis=1)
    return round(float((products / lengths).min()), 7)


def _alike(vectors: NDArray[np.float32]) -> float:
    cosines = vectors @ vectors.T
    return round(float(np.median(cosines[np.triu_indices(len(vectors), 1)])), 4)
