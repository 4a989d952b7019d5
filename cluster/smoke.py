"""Does this installation work? `python cluster/smoke.py`, in an image, on a node, or from the tests; no Ray is started.

Out: versions as key=value, then `ok`, status 0; or one line that says what is wrong, status 1. `--quick`, for a health
check, only looks whether everything can be found, and whether the disk takes a file.
"""

import argparse
import importlib.util
import io
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.searching.encoder import Encoder

MODULES = ("ray", "torch", "open_clip", "faiss", "pyarrow", "PIL", "fastapi", "s3fs", "pipeline", "jobs")
PACKAGES = ("rayclip", "ray", "torch", "open_clip_torch", "pyarrow", "pillow", "numpy")
# Of the demo's model as it is in this repository: whoever trains it anew puts in what this script then says it found.
SPACE = "b9053874bc85"
COSINE = 0.428  # of the star below and "a red star", in float32
TOLERANCE = 0.01  # other versions of Pillow and torch draw and sum up a little differently


class SmokeError(Exception):
    """Something that an installation must be able to do, and this one is not."""


def main() -> int:
    """Check, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="load no model")
    parser.add_argument("--model", help="a folder with the demo's model; the one that is installed with jobs.demo")
    arguments = parser.parse_args()
    try:
        check_modules()
        check_disk()
        if not arguments.quick:
            encoder = checked_encoder(arguments.model or installed_model())
            check_versions()
            check_vectors(encoder)
    except Exception as error:  # noqa: BLE001  # whatever it is, a health check wants one line of it
        print(f"smoke: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print("ok")
    return 0


def check_modules() -> None:
    """Find every module without importing it, which takes seconds."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise SmokeError(f"no module named {', '.join(missing)}")


def check_disk() -> None:
    """Write a file where Ray, caches and decoders write: the root may be read-only, this may not."""
    with tempfile.TemporaryFile() as file:
        file.write(b"rayclip")


def checked_encoder(model: str) -> "Encoder":
    """Find the model and look whether it is the one that is known here; nothing heavy is loaded yet."""
    from pipeline.config import EncodeConfig, ModelConfig
    from pipeline.searching.encoder import encoder_of

    encoder = encoder_of(ModelConfig(model=model, encode=EncodeConfig(precision="fp32")))
    space = encoder.spec.space
    if space != SPACE:
        raise SmokeError(f"model {model}: of space {space}, wanted {SPACE}: other weights, or damaged ones")
    return encoder


def check_versions() -> None:
    """Say what is installed; importing it shows that its libraries load."""
    import faiss
    import ray
    import torch

    print(f"python={sys.version.split()[0]}", *(f"{package}={version(package)}" for package in PACKAGES))
    print(f"faiss={faiss.__version__} gpus={torch.cuda.device_count()}")
    if ray.__version__ != version("ray"):
        raise SmokeError(f"ray: imports as {ray.__version__}, is installed as {version('ray')}")


def installed_model() -> str:
    """Find the demo's model beside the code that makes it."""
    import jobs.demo

    return str(Path(jobs.demo.__path__[0]) / "model")


def check_vectors(encoder: "Encoder") -> None:
    """Embed a drawn picture and two texts, and find the text that fits by FAISS."""
    import faiss
    import numpy as np

    try:
        image = np.asarray(encoder.images([star_png()]))
        texts = np.asarray(encoder.texts(["a blue circle", "a red star", "a green cross"]))
    finally:
        encoder.close()
    norm, cosine = float(np.linalg.norm(image[0])), float(image[0] @ texts[1])
    print(f"space={encoder.spec.space} d={image.shape[1]} norm={norm:.6f} cosine={cosine:.4f}")
    if abs(norm - 1) > 1e-5:
        raise SmokeError(f"norm of the vector: {norm}, wanted 1")
    if abs(cosine - COSINE) > TOLERANCE:
        raise SmokeError(f"cosine of picture and text: {cosine:.4f}, wanted {COSINE} within {TOLERANCE}")
    index = faiss.IndexFlatIP(texts.shape[1])
    index.add(texts)
    _, found = index.search(image, 1)
    if found[0, 0] != 1:
        raise SmokeError(f"nearest text: number {found[0, 0]}, wanted 1")


def star_png() -> bytes:
    """Draw a red star on white, always the same."""
    import math

    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (128, 128), "white")
    points = [
        (64 + radius * math.sin(turn * math.pi / 5), 64 - radius * math.cos(turn * math.pi / 5))
        for turn, radius in enumerate([48, 20] * 5)
    ]
    ImageDraw.Draw(picture).polygon(points, fill=(220, 30, 30))
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


if __name__ == "__main__":
    sys.exit(main())
