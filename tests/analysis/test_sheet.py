import io

import numpy as np
from PIL import Image

from pipeline.analysis.sheet import CELL_PX, GAP_PX, LINE_PX, contact_sheet
from pipeline.model import PreprocessSpec

SPEC = PreprocessSpec(8, 8, (0.5,) * 3, (0.5,) * 3)


def picture(colour: str, size: tuple[int, int]) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", size, colour).save(written, "PNG")
    return written.getvalue()


def test_pictures_stand_where_they_rank_and_missing_ones_are_grey():
    pictures = [(picture("red", (400, 400)), "one"), (None, "two"), (b"not a picture", "three")]
    pictures += [(picture("blue", (400, 100)), "four")] * 3
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(pictures, SPEC, "title"))))
    top, middle = 2 * GAP_PX + LINE_PX, CELL_PX // 2

    def centre(column: int, row: int) -> list[int]:
        below = row * (CELL_PX + GAP_PX + 3 * LINE_PX)
        return sheet[top + below + middle, GAP_PX + column * (CELL_PX + GAP_PX) + middle].tolist()

    assert centre(0, 0) == [255, 0, 0]
    assert centre(1, 0) == centre(2, 0) == [225, 225, 225]
    assert centre(3, 0) == centre(4, 0) == centre(0, 1) == [0, 0, 255]


def test_a_sheet_of_nothing_is_a_title():
    assert Image.open(io.BytesIO(contact_sheet([], SPEC, "nothing found"))).height < CELL_PX
