from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.indexing.plot import draw
from pipeline.indexing.tune import Measurement


def point(nprobe: int | None, image: float, text: float, ms: float) -> Measurement:
    return Measurement(nprobe, nprobe and 0.2, {"image": image, "text": text}, {"image": 0.0, "text": 0.0}, ms, 1000.0)


@pytest.mark.parametrize("nprobe", [8, None])
def test_the_plot_shows_both_kinds_of_query_and_the_target(tmp_path: Path, nprobe: int | None):
    curve = [point(1, 0.6, 0.3, 0.2), point(4, 0.9, 0.7, 0.3), point(8, 0.99, 0.96, 0.5)] if nprobe else []
    chosen = point(nprobe, 0.98, 0.95, 0.5)
    draw(curve or [chosen], chosen, 0.95, tmp_path / "recall.png")
    pixels = np.asarray(Image.open(tmp_path / "recall.png").convert("RGB"), np.int16)
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert pixels.shape == (440, 660, 3)
    assert {(31, 119, 180), (255, 127, 14), (128, 128, 128)} <= colours  # images, texts, target
