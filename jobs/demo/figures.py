"""The demo's world: coloured shapes on plain grounds, their captions, and which of them a model never saw.

In: a composition (colour, shape, size, position, ground) and a seeded generator. Out: a Pillow image and English
captions of it. Every fifth composition is held out from training, so that searching for it means something.
This file knows nothing of Parquet, of models or of the pipeline.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 210, 40),
    "purple": (140, 60, 180),
    "orange": (245, 130, 30),
    "pink": (245, 150, 190),
    "brown": (120, 75, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = {"small": 0.15, "large": 0.27}  # radius as a share of the picture's shorter edge
POSITIONS = {
    "in the middle": (0.5, 0.5),
    "at the top left": (0.28, 0.28),
    "at the top right": (0.72, 0.28),
    "at the bottom left": (0.28, 0.72),
    "at the bottom right": (0.72, 0.72),
}
GROUNDS = {"white": (250, 250, 250), "grey": (150, 150, 150), "black": (15, 15, 15)}


@dataclass(frozen=True)
class Composition:
    """What a picture shows; any field may be None in a description that leaves it open."""

    colour: str | None
    shape: str | None
    size: str | None
    position: str | None
    ground: str | None


COMPOSITIONS = tuple(Composition(*parts) for parts in itertools.product(COLOURS, SHAPES, SIZES, POSITIONS, GROUNDS))
# Fields cycle at 8, 6, 2, 5 and 3, so a step of 5 alone would hold out a whole position: 7 * rank mixes them.
HELD_OUT = frozenset(c for rank, c in enumerate(COMPOSITIONS) if (rank * 7 + rank // 15) % 5 == 0)


def caption(composition: Composition) -> str:
    """Say in English what the composition names: 'a small red star at the top left on a black background'."""
    words = ["a", composition.size, composition.colour, composition.shape or "shape", composition.position]
    if composition.ground:
        words.append(f"on a {composition.ground} background")
    return " ".join(word for word in words if word)


def draw(composition: Composition, rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw a composition, with jittered place, size, angle and colour, as an RGB image of ``width`` x ``height`` px."""
    scale = 2  # drawn twice as large and reduced, which smooths the edges
    edge = min(width, height) * scale
    ground = _jitter(GROUNDS[composition.ground or "white"], rng, 6)
    colour = _jitter(COLOURS[composition.colour or "red"], rng, 12)
    across, down = POSITIONS[composition.position or "in the middle"]
    centre = (
        width * scale * across + edge * rng.uniform(-0.03, 0.03),
        height * scale * down + edge * rng.uniform(-0.03, 0.03),
    )
    radius = edge * SIZES[composition.size or "large"] * rng.uniform(0.9, 1.1)
    image = Image.new("RGB", (width * scale, height * scale), ground)
    pen = ImageDraw.Draw(image)
    turn = rng.uniform(-0.15, 0.15)
    _draw_shape(pen, composition.shape or "circle", centre, radius, turn, colour, ground)
    return image.resize((width, height), Image.Resampling.BOX)


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    turn: float,
    colour: tuple[int, int, int],
    ground: tuple[int, int, int],
) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, fill=colour)
        hole = radius * 0.6
        pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=ground)
    elif shape == "cross":
        for angle in (math.pi / 4, 3 * math.pi / 4):
            pen.polygon(_bar(centre, radius, angle + turn), fill=colour)
    elif shape == "star":
        pen.polygon(_polygon(centre, [radius * 1.1, radius * 0.45] * 5, turn), fill=colour)
    else:
        corners, reach = {"square": (4, radius * 1.2), "triangle": (3, radius * 1.2)}[shape]
        turn += math.pi / 4 if shape == "square" else 0.0
        pen.polygon(_polygon(centre, [reach] * corners, turn), fill=colour)


def _polygon(centre: tuple[float, float], radii: list[float], turn: float) -> list[tuple[float, float]]:
    """Place corners at equal angles, the first one upwards, at the given distances from the centre."""
    step = 2 * math.pi / len(radii)
    return [
        (centre[0] + r * math.sin(turn + i * step), centre[1] - r * math.cos(turn + i * step))
        for i, r in enumerate(radii)
    ]


def _bar(centre: tuple[float, float], radius: float, angle: float) -> list[tuple[float, float]]:
    along = (radius * math.sin(angle), -radius * math.cos(angle))
    aside = (along[1] * 0.28, -along[0] * 0.28)
    return [
        (centre[0] + s * along[0] + t * aside[0], centre[1] + s * along[1] + t * aside[1])
        for s, t in ((1, 1), (1, -1), (-1, -1), (-1, 1))
    ]


def _jitter(rgb: tuple[int, int, int], rng: np.random.Generator, by: int) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(rgb) + rng.integers(-by, by + 1, 3), 0, 255)
    return int(red), int(green), int(blue)
