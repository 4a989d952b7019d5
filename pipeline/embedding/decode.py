"""Encoded bytes in, one upright RGB picture out, or a reason why not.

Formats come from an allow-list, limits are checked before pixels are allocated, and whatever a decoder raises is one
image's reject. The policy is one for batch and serving: first frame; EXIF orientation applied; transparency over the
fill colour; palettes resolved; more than 8 bits scaled, not clipped; embedded ICC profiles ignored, as OpenCLIP ignores
them and as those who trained on crawled pictures did.
"""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.model import PreprocessSpec
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
    OverflowError,
    AttributeError,
    RuntimeError,  # broken AVIF
    MemoryError,
    struct.error,
    zlib.error,
)

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


def allow_heif() -> None:
    """Teach Pillow to open HEIF.

    Raises:
        ImportError: the package for it is not installed.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise ImportError("preprocess.formats has HEIF; install it with: pip install 'rayclip[heif]'") from error
    pillow_heif.register_heif_opener(thumbnails=False)


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
            image.draft(None, (image.width // divisor, image.height // divisor))
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
    if image.mode.startswith("I;16"):
        values = np.asarray(image, np.uint16)
        image = Image.fromarray(_eight_bits(values, 65535 if kind == "PNG" else None))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(np.asarray(image), None))
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGB", image.size, fill)
        canvas.paste(image, mask=image)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: NDArray[np.generic], white: float | None) -> NDArray[np.uint8]:
    """Scale grey levels to 0..255.

    Args:
        values: integers or floats of any range.
        white: the level that is white; None: 1 for floats up to 1, else the largest of as many bits as the largest
            level needs (cameras and scanners keep 10, 12 or 14 bits in 16), at least 8. Levels below zero are spread
            from the darkest to the lightest.
    """
    levels = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(levels.min()), float(levels.max())
    if low < 0:
        levels, white = levels - low, high - low
    elif white is None:
        white = (
            1.0 if high <= 1 and np.issubdtype(values.dtype, np.floating) else 2.0 ** max(8, int(high).bit_length()) - 1
        )
    return np.asarray(levels * (255.0 / white), np.uint8)
