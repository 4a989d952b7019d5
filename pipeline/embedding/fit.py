"""An RGB picture in, uint8 pixels of the model's size out.

`pad` is ours: nothing is cut off. The other three are OpenCLIP's eval transform (open_clip/transform.py, 3.3), step by
step and bit by bit, without importing torch into every process that decodes: shortest edge and centre crop, longest
edge and padding, or squash.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embedding.decode import open_rgb
from pipeline.model import PreprocessSpec

BAND_ROWS = 256
# Threads of pictures, hundreds of times as long as wide, would take minutes or gigabytes to be resized as they are:
# they are shrunk or cut first. All others are exact.
MAX_CANVAS_PIXELS, MAX_RESIZED_PIXELS = 400_000_000, 50_000_000
THREAD = 16  # times the model's edge, or the short edge, that is left of the long one
THUMBNAIL_QUALITIES = (80, 40, 10)  # of WebP, until one is small enough
RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def pixels_of(encoded: bytes | memoryview | None, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Decode one image and fit it: uint8 of shape (3, height_px, width_px).

    Raises:
        RejectedRowError: there is no image in these bytes, or one that the limits refuse.
    """
    return fitted(open_rgb(encoded, spec), spec)


def thumbnail_of(image: Image.Image, spec: PreprocessSpec) -> bytes | None:
    """Write an RGB picture as a small WebP; None if it does not get small enough."""
    edge_px = spec.thumbnail_px or max(image.size)
    scale = min(1.0, edge_px / max(image.size))
    small = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
        Image.Resampling.BICUBIC,
        reducing_gap=2.0,
    )
    for quality in THUMBNAIL_QUALITIES:
        written = io.BytesIO()
        small.save(written, "WEBP", quality=quality)
        if written.tell() <= spec.thumbnail_bytes:
            return written.getvalue()
    return None


def fitted(image: Image.Image, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Give an RGB picture the model's size: uint8 of shape (3, height_px, width_px)."""
    fit = {"pad": _pad, "shortest": _shortest, "longest": _longest, "squash": _squash}[spec.resize_mode]
    return np.asarray(fit(image, spec)).transpose(2, 0, 1)


def _pad(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Centre the picture on a canvas of the model's proportions, the smallest that holds it, then resize.

    Pillow resizes rows, then columns, with levels rounded to 8 bits between. Done one after the other, the canvas need
    not be there at once: rows are resized in bands, and of rows that are all fill nothing is computed.
    """
    wide, high = _canvas_size(image, spec)
    if image.width < wide and wide * image.height > MAX_CANVAS_PIXELS:
        scale = THREAD * max(spec.width_px, spec.height_px) / max(image.size)
        smaller = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(smaller, Image.Resampling.BOX)
        wide, high = _canvas_size(image, spec)
    left, top = (wide - image.width) // 2, (high - image.height) // 2
    narrow = Image.new("RGB", (spec.width_px, high), spec.fill)
    for start in range(0, image.height, BAND_ROWS):
        band = image.crop((0, start, image.width, min(image.height, start + BAND_ROWS)))
        if image.width < wide:
            canvas = Image.new("RGB", (wide, band.height), spec.fill)
            canvas.paste(band, (left, 0))
            band = canvas
        narrow.paste(_resized(band, spec.width_px, band.height, spec), (0, top + start))
    return _resized(narrow, spec.width_px, spec.height_px, spec)


def _canvas_size(image: Image.Image, spec: PreprocessSpec) -> tuple[int, int]:
    wide = max(image.width, -(-image.height * spec.width_px // spec.height_px))
    return wide, max(image.height, -(-image.width * spec.height_px // spec.width_px))


def _shortest(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Resize the shortest edge, then crop the centre (torchvision's Resize and CenterCrop)."""
    edge_px = max(spec.width_px, spec.height_px)
    if max(image.size) / min(image.size) * edge_px * edge_px > MAX_RESIZED_PIXELS:
        most_px = THREAD * min(image.size)  # all that the crop will show of a thread of a picture, and more
        left, top = (max(0, (edge - most_px) // 2) for edge in image.size)
        image = image.crop((left, top, left + min(image.width, most_px), top + min(image.height, most_px)))
    if spec.width_px == spec.height_px:
        short = min(image.size)
        wide, high = (edge_px if edge == short else int(edge_px * edge / short) for edge in image.size)
        return _cropped(_resized(image, wide, high, spec), spec)
    # OpenCLIP's own class, which is not told the interpolation and keeps to bicubic
    ratio = min(image.width / spec.width_px, image.height / spec.height_px)
    size = (round(image.width / ratio), round(image.height / ratio))
    return _cropped(image.resize(size, Image.Resampling.BICUBIC), spec)


def _longest(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """Resize the longest edge, then pad the other (OpenCLIP's ResizeKeepRatio and CenterCropOrPad)."""
    ratio = max(image.width / spec.width_px, image.height / spec.height_px)
    wide, high = (max(1, round(edge / ratio)) for edge in image.size)
    canvas = Image.new("RGB", (spec.width_px, spec.height_px), spec.fill)
    canvas.paste(_resized(image, wide, high, spec), ((spec.width_px - wide) // 2, (spec.height_px - high) // 2))
    return canvas


def _squash(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    return _resized(image, spec.width_px, spec.height_px, spec)


def _resized(image: Image.Image, wide: int, high: int, spec: PreprocessSpec) -> Image.Image:
    return image.resize((wide, high), RESAMPLE[spec.interpolation])


def _cropped(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    left = round((image.width - spec.width_px) / 2)
    top = round((image.height - spec.height_px) / 2)
    return image.crop((left, top, left + spec.width_px, top + spec.height_px))
