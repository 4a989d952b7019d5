"""Encoded bytes in, one upright RGB picture out, or a reason why not.

Formats come from an allow-list, limits are checked before pixels are allocated, and whatever a decoder raises is one
image's reject. The policy is one for batch and serving: first frame; EXIF orientation applied; transparency over the
fill colour; palettes resolved; more than 8 bits scaled, not clipped; embedded ICC profiles ignored, as OpenCLIP ignores
them and as those who trained on crawled pictures did.
"""

import importlib.util
import io
import math
import struct
import zlib
from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.config import Format
from pipeline.model import Limits, PreprocessSpec
from pipeline.schema import Reason, RejectedRowError

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
    ArithmeticError,
    AttributeError,
    RuntimeError,  # broken AVIF
    MemoryError,
    struct.error,
    zlib.error,
)

BAND_PIXELS = 1 << 20

# EXIF 2.32, tag 274. ImageOps.exif_transpose does the same, and copies what is upright, and fails where EXIF is broken.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def take_over(limits: Limits) -> None:
    """Set Pillow up, for the whole process: our limit on pixels in place of its own, and HEIF if it is asked for.

    Raises:
        ImportError: the package for HEIF is not installed.
    """
    check_formats(limits.formats)
    Image.MAX_IMAGE_PIXELS = None
    if "HEIF" in limits.formats:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)


def check_formats(formats: Collection[Format]) -> None:
    """See to it that the packages for the formats are there, without importing them.

    Raises:
        ImportError: the one for HEIF is not installed.
    """
    if "HEIF" in formats and importlib.util.find_spec("pillow_heif") is None:
        raise ImportError("preprocess.formats has HEIF; install it with: pip install 'rayclip[heif]'")


def open_rgb(encoded: bytes | memoryview | None, spec: PreprocessSpec) -> Image.Image:
    """Decode one image, upright and in RGB, within the limits.

    Raises:
        RejectedRowError: there is no image in these bytes, or one that the limits refuse.
    """
    check_bytes(encoded, spec)
    formats = spec.limits.formats
    try:
        with Image.open(io.BytesIO(encoded or b""), formats=formats) as image:
            _check_size(image, spec)
            if spec.decode == "scaled":
                _scale_down(image, spec)
            kind = image.format
            if kind == "PNG":  # decoding looks at no checksum of the pixels
                Image.open(io.BytesIO(encoded or b""), formats=("PNG",)).verify()
            image.load()
            return _rgb(_upright(image), kind, spec.fill)
    except UnidentifiedImageError as error:
        raise RejectedRowError(Reason.NOT_AN_IMAGE, f"none of {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise RejectedRowError(Reason.TOO_MANY_PIXELS, str(error)) from error
    except DECODE_ERRORS as error:
        cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
        reason = Reason.TRUNCATED if cut else Reason.DECODE_FAILED
        raise RejectedRowError(reason, f"{type(error).__name__}: {error}") from error


def check_bytes(encoded: bytes | memoryview | None, spec: PreprocessSpec) -> None:
    """Refuse what needs no decoder to be refused.

    Raises:
        RejectedRowError: nothing, zero bytes, or more than the limit.
    """
    if encoded is None:
        raise RejectedRowError(Reason.NULL, "no bytes")
    if len(encoded) == 0:
        raise RejectedRowError(Reason.EMPTY, "zero bytes")
    if len(encoded) > spec.limits.max_image_bytes:
        limit = spec.limits.max_image_bytes
        raise RejectedRowError(Reason.TOO_MANY_BYTES, f"{len(encoded)} bytes, at most {limit} are read")


def _check_size(image: Image.Image, spec: PreprocessSpec) -> None:
    limit = spec.limits.max_image_pixels
    if image.width * image.height > limit:
        raise RejectedRowError(
            Reason.TOO_MANY_PIXELS, f"{image.width} x {image.height} px, at most {limit} px are decoded"
        )


def _scale_down(image: Image.Image, spec: PreprocessSpec) -> None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, as long as what the model sees is shrunk by another half at least."""
    needed = max if spec.resize_mode in ("pad", "longest") else min  # the edge that decides how far it will be shrunk
    ratio = min(
        needed(width / spec.width_px, height / spec.height_px)
        for width, height in (image.size, image.size[::-1])  # EXIF may turn it
    )
    for divisor in (8, 4, 2):
        if ratio >= 2 * divisor:
            image.draft(None, (max(1, image.width // divisor), max(1, image.height // divisor)))
            return


def _upright(image: Image.Image) -> Image.Image:
    """Turn and mirror as EXIF says; where EXIF cannot be read it says nothing."""
    try:
        method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODE_ERRORS:
        return image
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image, kind: str | None, fill: tuple[int, ...]) -> Image.Image:
    """Convert any mode to RGB. Pillow's own conversion would clip more than 8 bits to white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _grey(image, kind)
    if image.has_transparency_data:
        canvas = Image.new("RGB", image.size, fill)
        for top, band in _bands(image):
            clear = band if band.mode == "RGBA" else band.convert("RGBA")
            canvas.paste(clear, (0, top), clear)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(image: Image.Image, kind: str | None) -> Image.Image:
    """Scale grey levels of any range to 8 bits; a level that stands for transparency becomes an alpha channel."""
    low = min(float(_levels(band).min()) for _, band in _bands(image))
    high = max(float(_levels(band).max()) for _, band in _bands(image))
    black, white = (low, high) if low < 0 else (0.0, _white(high, image.mode, kind))
    transparent = image.info.get("transparency")
    grey = Image.new("LA" if isinstance(transparent, int) else "L", image.size)
    for top, band in _bands(image):
        levels = _levels(band)
        scaled = Image.fromarray(((levels - black) * (255.0 / ((white - black) or 1.0))).astype(np.uint8))
        if isinstance(transparent, int):
            scaled.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
        grey.paste(scaled, (0, top))
    return grey


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield a picture some rows at a time, each with where it starts: what is made of all of it would be gigabytes."""
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def _levels(band: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band).astype(np.float64), posinf=0.0, neginf=0.0)


def _white(high: float, mode: str, kind: str | None) -> float:
    """Say which level is white, given the highest: all bits of a PNG are used; others tell by what they hold.

    Floats: 1 if none is above, else the highest, up to where they must be 8 bits. Integers: the highest of as many bits
    as the highest needs (cameras and scanners keep 10, 12 or 14 bits in 16), at least 8.
    """
    if kind == "PNG":
        return 65535.0
    if mode == "F" and high < 128:
        return max(1.0, high)
    return 2.0 ** max(8, math.ceil(math.log2(high + 1))) - 1
