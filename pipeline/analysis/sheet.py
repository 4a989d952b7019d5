"""Pictures and captions in, one PNG out: a contact sheet to look at."""

import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.embedding.decode import open_rgb
from pipeline.model import PreprocessSpec
from pipeline.schema import RejectedRowError

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
    for i, (encoded, caption) in enumerate(pictures):
        x = GAP_PX + (i % COLUMNS) * cell[0]
        y = 2 * GAP_PX + LINE_PX + (i // COLUMNS) * cell[1]
        picture = _thumbnail(encoded, spec)
        sheet.paste(picture, (x + (CELL_PX - picture.width) // 2, y + (CELL_PX - picture.height) // 2))
        pen.rectangle((x - 1, y - 1, x + CELL_PX, y + CELL_PX), outline=(200, 200, 200))
        lines = textwrap.wrap(caption, CELL_PX // 6, max_lines=LINES)
        pen.multiline_text((x, y + CELL_PX + 3), "\n".join(lines), (40, 40, 40), font, spacing=2)
    written = io.BytesIO()
    sheet.save(written, "PNG")
    return written.getvalue()


def _thumbnail(encoded: bytes | None, spec: PreprocessSpec) -> Image.Image:
    try:
        image = open_rgb(encoded, spec)
    except RejectedRowError:
        return Image.new("RGB", (CELL_PX, CELL_PX), (225, 225, 225))
    image.thumbnail((CELL_PX, CELL_PX))
    return image
