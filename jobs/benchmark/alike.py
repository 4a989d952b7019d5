"""Pictures that are alike, and why: scenes, photographs, and copies of each with one kind of change.

In: how many scenes, and a seed. Out: encoded pictures with the scene that each shows and the kind of change. Scenes of
one family look alike and share their colours, yet are different pictures: what must not be taken for a duplicate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from jobs.benchmark.material import photographs, saved

ORIGINAL = "original"
EDGE_PX = (280, 420)  # of a scene, from and below
Rng = np.random.Generator


@dataclass(frozen=True)
class Alike:
    """One picture."""

    key: str
    scene: int
    kind: str
    image: bytes

    @property
    def row(self) -> dict[str, object]:
        """A row of a shard."""
        return {"key": self.key, "scene": self.scene, "kind": self.kind, "image": self.image}


def pictures(scenes: int, seed: int, *, photos: bool = True) -> Iterator[Alike]:
    """Yield every scene with one copy of each kind of change; photographs behind the scenes."""
    rng = np.random.default_rng(seed)
    families = list(FAMILIES.values())
    for number in range(scenes):
        yield from _copies(families[number % len(families)](rng), number, rng)
    for number, image in enumerate(photographs() if photos else [], scenes):
        yield from _copies(image, number, rng)


def _copies(image: Image.Image, scene: int, rng: Rng) -> Iterator[Alike]:
    yield Alike(f"{scene:05d}-{ORIGINAL}", scene, ORIGINAL, saved(image, "JPEG", quality=92))
    for kind, change in CHANGES.items():
        yield Alike(f"{scene:05d}-{kind}", scene, kind, change(image, rng))


def _recompressed(image: Image.Image, rng: Rng) -> bytes:
    return saved(image, "JPEG", quality=int(rng.integers(20, 60)))


def _resized(image: Image.Image, rng: Rng) -> bytes:
    scale = rng.choice([0.3, 0.5, 0.75, 1.5])
    wide, high = (round(edge * scale) for edge in image.size)
    return saved(image.resize((wide, high), Image.Resampling.LANCZOS), "JPEG", quality=85)


def _blurred(image: Image.Image, rng: Rng) -> bytes:
    radius_px = rng.uniform(0.004, 0.01) * min(image.size)
    return saved(image.filter(ImageFilter.GaussianBlur(radius_px)), "JPEG", quality=85)


def _cropped(image: Image.Image, rng: Rng) -> bytes:
    """Cut 5 to 15 % off each edge's length, somewhere on its two sides."""
    kept = [round(edge * (1 - rng.uniform(0.05, 0.15))) for edge in image.size]
    left, top = (int(rng.integers(0, edge - keep + 1)) for edge, keep in zip(image.size, kept, strict=True))
    return saved(image.crop((left, top, left + kept[0], top + kept[1])), "JPEG", quality=85)


def _marked(image: Image.Image, rng: Rng) -> bytes:
    """Write half-transparent words across a part of the picture."""
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    size_px = round(min(image.size) * rng.uniform(0.08, 0.14))
    at = (rng.uniform(0.02, 0.3) * image.width, rng.uniform(0.1, 0.8) * image.height)
    ImageDraw.Draw(layer).text(at, "© EXAMPLE", (255, 255, 255, 170), ImageFont.load_default(size_px))
    return saved(Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB"), "JPEG", quality=85)


def _mirrored(image: Image.Image, rng: Rng) -> bytes:
    return saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=85)


def _brightened(image: Image.Image, rng: Rng) -> bytes:
    factor = rng.choice([rng.uniform(0.65, 0.85), rng.uniform(1.15, 1.35)])
    return saved(ImageEnhance.Brightness(image).enhance(float(factor)), "JPEG", quality=85)


CHANGES: dict[str, Callable[[Image.Image, Rng], bytes]] = {
    "recompressed": _recompressed,
    "resized": _resized,
    "blurred": _blurred,
    "cropped": _cropped,
    "watermarked": _marked,
    "mirrored": _mirrored,
    "brightened": _brightened,
}


def _size(rng: Rng) -> tuple[int, int]:
    wide, high = rng.integers(*EDGE_PX, 2)
    return int(wide), int(high)


def _palette(rng: Rng, count: int) -> NDArray[np.float64]:
    """Draw colours about one hue, so that scenes of a family share them."""
    base = np.array([[90, 120, 150], [150, 120, 80], [100, 140, 90]])[rng.integers(3)]
    return np.asarray(np.clip(base + rng.normal(0, 45, (count, 3)), 0, 255))


def _image(pixels: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _shaded(top: NDArray[np.float64], bottom: NDArray[np.float64], wide: int, high: int) -> NDArray[np.float64]:
    """Go from one colour to another, downwards: pixels (high, wide, 3)."""
    share = np.linspace(0, 1, high)[:, None, None]
    return np.asarray((top + share * (bottom - top)).repeat(wide, axis=1))


def _clouds(rng: Rng) -> Image.Image:
    """Noise whose amplitude falls with frequency as it does in photographs (Field 1987: 1/f)."""
    wide, high = _size(rng)
    falloff = 1 / np.maximum(np.hypot(np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide)[None]), 1 / max(wide, high))
    planes = np.fft.irfft2(falloff * np.exp(2j * np.pi * rng.random((3, *falloff.shape))), (high, wide))
    planes = planes[:1] + 0.3 * planes
    return _image((128 + 48 * planes / planes.std()).transpose(1, 2, 0))


def _cells(rng: Rng) -> Image.Image:
    """Regions of even colour, as tiles or leaves."""
    wide, high = _size(rng)
    count = int(rng.integers(12, 40))
    sites, colours = rng.random((count, 2)) * (high, wide), _palette(rng, count)
    down, across = np.mgrid[:high, :wide]
    near = np.argmin((down[..., None] - sites[:, 0]) ** 2 + (across[..., None] - sites[:, 1]) ** 2, axis=2)
    return _image(colours[near] + rng.normal(0, 6, (high, wide, 1)))


def _ridges(rng: Rng) -> Image.Image:
    """Hills behind hills below a sky."""
    wide, high = _size(rng)
    colours = _palette(rng, 6)
    pixels = _shaded(colours[0] + 60, colours[0], wide, high)
    across = np.arange(wide) / wide
    for layer in range(1, 6):
        waves = np.sum(
            [rng.normal() / k * np.sin(2 * np.pi * (k * across + rng.random())) for k in range(1, 9)], axis=0
        )
        top = high * (0.15 + 0.15 * layer + 0.06 * waves)
        pixels[np.arange(high)[:, None] > top[None]] = colours[layer]
    return _image(pixels + rng.normal(0, 4, (high, wide, 1)))


def _weave(rng: Rng) -> Image.Image:
    """Gratings across each other, strong in some places and weak in others."""
    wide, high = _size(rng)
    down, across = np.mgrid[:high, :wide] / 100
    colours, pixels = _palette(rng, 4), np.zeros((high, wide, 3))
    for colour in colours:
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(0.4, 3)
        wave = np.sin(2 * np.pi * (frequency * (np.cos(angle) * across + np.sin(angle) * down) + rng.random()))
        place = np.exp(-((across - 4 * rng.random()) ** 2 + (down - 4 * rng.random()) ** 2) / rng.uniform(1, 6))
        pixels += (wave * (0.4 + place))[..., None] * (colour - 100) * 0.7
    return _image(120 + pixels)


def _still_life(rng: Rng) -> Image.Image:
    """Overlapping ellipses and boxes on a shaded ground."""
    wide, high = _size(rng)
    count = int(rng.integers(6, 16))
    colours = _palette(rng, count + 2)
    image = _image(_shaded(colours[-1], colours[-2], wide, high))
    pen = ImageDraw.Draw(image)
    for colour in colours[:count]:
        x, y = rng.uniform(-0.1, 0.9, 2) * (wide, high)
        box = (x, y, x + rng.uniform(0.08, 0.4) * wide, y + rng.uniform(0.08, 0.4) * high)
        (pen.ellipse if rng.random() < 0.6 else pen.rectangle)(box, fill=tuple(map(int, colour)))
    return _image(np.asarray(image) + rng.normal(0, 4, (high, wide, 1)))


FAMILIES: dict[str, Callable[[Rng], Image.Image]] = {
    "clouds": _clouds,
    "cells": _cells,
    "ridges": _ridges,
    "weave": _weave,
    "still life": _still_life,
}
