"""Encoded images in, uint8 pixels out: decode, orient, flatten to RGB, fit to the model's size.

A row that has no picture in it keeps its place, with zero pixels and a reason. Scaling to [0, 1] and normalising are
the encoder's work, on its device: uint8 is a quarter of what float32 would move. Knows nothing of Ray.
"""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline import schema
from pipeline.model import PreprocessSpec
from pipeline.schema import Reason

# Nothing that runs an interpreter (EPS) or that nobody photographs with. MPO comes through JPEG; naming it breaks
# Image.open for every file that no plugin knows (Pillow 13).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# What Pillow's plugins raise over its own 1,060 test images; OSError alone misses several (SyntaxError: broken APNG,
# ValueError: text bombs and palettes, NotImplementedError: exotic encodings).
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    NotImplementedError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    AttributeError,
    RuntimeError,  # broken AVIF
    MemoryError,
    struct.error,
    zlib.error,
)


class RejectedImageError(Exception):
    """One image that cannot be used: its reason and the detail that a person needs."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Preprocess:
    """The step: a batch with an image column becomes a batch with a pixel column."""

    def __init__(self, spec: PreprocessSpec) -> None:
        self.spec = spec

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Replace encoded images by pixels; rows that already carry a reason keep it."""
        spec = self.spec
        pixels = np.zeros((batch.num_rows, 3, spec.height_px, spec.width_px), np.uint8)
        reasons: list[str | None] = batch[schema.REASON].to_pylist()
        errors: list[str | None] = batch[schema.ERROR].to_pylist()
        for i, (image, row) in enumerate(zip(batch[schema.IMAGE], batch[schema.ROW], strict=True)):
            if reasons[i] is not None:
                continue
            try:
                pixels[i] = pixels_of(image.as_buffer(), spec)
            except RejectedImageError as reject:
                reasons[i] = reject.reason.value
                errors[i] = schema.error_text(reject.reason, row.as_py(), str(reject))
        new = {schema.PIXELS: pixel_array(pixels), **schema.outcome_columns(reasons, errors)}
        return schema.replace_columns(batch, [schema.IMAGE], new)


def pixel_array(pixels: NDArray[np.uint8]) -> pa.FixedSizeListArray:
    """View pixels (n, 3, h, w) as an Arrow column without copying them."""
    width = int(np.prod(pixels.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), width)


def pixels_of(encoded: pa.Buffer | bytes | None, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Decode one image and fit it: uint8 of shape (3, height_px, width_px).

    Raises:
        RejectedImageError: there is no image in these bytes, or one that the limits refuse.
    """
    return fitted(open_rgb(encoded, spec), spec)


def open_rgb(encoded: pa.Buffer | bytes | None, spec: PreprocessSpec) -> Image.Image:
    """Decode one image, upright and in RGB, within the limits.

    Raises:
        RejectedImageError: there is no image in these bytes, or one that the limits refuse.
    """
    if encoded is None:
        raise RejectedImageError(Reason.NULL, "no bytes")
    size = len(memoryview(encoded))
    if size == 0:
        raise RejectedImageError(Reason.EMPTY, "zero bytes")
    if size > spec.max_image_bytes:
        raise RejectedImageError(Reason.TOO_MANY_BYTES, f"{size} bytes, at most {spec.max_image_bytes} are read")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            return _rgb(_decoded(image, spec))
    except UnidentifiedImageError as error:
        raise RejectedImageError(Reason.NOT_AN_IMAGE, f"none of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise RejectedImageError(Reason.TOO_MANY_PIXELS, str(error)) from error
    except DECODE_ERRORS as error:
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        reason = Reason.TRUNCATED if cut else Reason.DECODE_FAILED
        raise RejectedImageError(reason, f"{type(error).__name__}: {error}") from error


def _decoded(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Check the size, which the header gives, then decode the first frame, upright."""
    if image.width * image.height > spec.max_image_pixels:
        raise RejectedImageError(
            Reason.TOO_MANY_PIXELS,
            f"{image.width} x {image.height} px, at most {spec.max_image_pixels} px are decoded",
        )
    if spec.decode == "scaled":  # JPEG only; elsewhere draft() does nothing
        image.draft(None, (2 * spec.width_px, 2 * spec.height_px))
    image.load()
    return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: transparency over white, more than 8 bits scaled (Pillow's convert would clip)."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.uint16) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_spread(np.asarray(image, np.float64)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _spread(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale values of no known range to 0..255 by their own minimum and maximum."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255.0 / (high - low or 1.0))).astype(np.uint8)


def fitted(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Centre the picture on white of the model's proportions, then resize: (3, height_px, width_px)."""
    wide, high = _canvas_size(image, spec)
    if wide * high > spec.max_image_pixels:  # a thread of a picture would ask for gigabytes of white
        scale = 16 * max(spec.width_px, spec.height_px) / max(image.size)
        smaller = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(smaller, Image.Resampling.BOX)
        wide, high = _canvas_size(image, spec)
    if (wide, high) != image.size:
        canvas = Image.new("RGB", (wide, high), "white")
        canvas.paste(image, ((wide - image.width) // 2, (high - image.height) // 2))
        image = canvas
    image = image.resize((spec.width_px, spec.height_px), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def _canvas_size(image: Image.Image, spec: PreprocessSpec) -> tuple[int, int]:
    """Give the smallest size of the model's proportions that holds the picture."""
    wide = max(image.width, -(-image.height * spec.width_px // spec.height_px))
    return wide, max(image.height, -(-image.width * spec.height_px // spec.width_px))
