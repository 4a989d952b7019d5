"""Pictures and captions in, one PNG out: a contact sheet to look at."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.embedding.sandbox import Sandbox
from pipeline.model import WHITE, PreprocessSpec

CELL_PX = 160
GAP_PX = 12
LINE_PX = 14
LINES = 3
COLUMNS = 5


def contact_sheet(pictures: Sequence[tuple[bytes | None, str]], spec: PreprocessSpec, title: str) -> bytes:
    """Lay encoded pictures out in rows of five, best first, each over its caption; a missing one is left grey."""
    font = ImageFont.load_default(11)
    cell = (CELL_PX + GAP_PX, CELL_PX + GAP_PX + LINES * LINE_PX)
    rows = -(-len(pictures) // COLUMNS)
    size = (COLUMNS * cell[0] + GAP_PX, rows * cell[1] + 2 * GAP_PX + LINE_PX)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP_PX, GAP_PX // 2), title, "black", ImageFont.load_default(14))
    thumbnails = _thumbnails([encoded for encoded, _ in pictures], spec)
    for i, ((_, caption), thumbnail) in enumerate(zip(pictures, thumbnails, strict=True)):
        x = GAP_PX + (i % COLUMNS) * cell[0]
        y = 2 * GAP_PX + LINE_PX + (i // COLUMNS) * cell[1]
        sheet.paste(thumbnail, (x, y))
        pen.rectangle((x - 1, y - 1, x + CELL_PX, y + CELL_PX), outline=(200, 200, 200))
        lines = textwrap.wrap(caption, CELL_PX // 6, max_lines=LINES)
        pen.multiline_text((x, y + CELL_PX + 3), "\n".join(lines), (40, 40, 40), font, spacing=2)
    written = io.BytesIO()
    sheet.save(written, "PNG")
    return written.getvalue()


def _thumbnails(encoded: list[bytes | None], spec: PreprocessSpec) -> list[Image.Image]:
    """Decode as the embed job does, where a bad picture harms nobody; grey where there is none."""
    small = replace(spec, height_px=CELL_PX, width_px=CELL_PX, resize_mode="pad", fill=WHITE, decode="scaled")
    sandbox = Sandbox(small)
    pixels, outcomes = sandbox.pixels(encoded)
    sandbox.close()
    grey = Image.new("RGB", (CELL_PX, CELL_PX), (225, 225, 225))
    return [
        Image.fromarray(np.ascontiguousarray(one.transpose(1, 2, 0))) if reject is None else grey
        for one, reject in zip(pixels, outcomes, strict=True)
    ]
