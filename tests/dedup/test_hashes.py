import numpy as np
import pytest
from PIL import Image

from pipeline.dedup.hashes import GREY_PX, NO_HASH, Bands, forms, hashes, window


def pictures(count: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 6), np.uint8)
    size = (GREY_PX, GREY_PX)
    return np.stack([np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in coarse])


def bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.array([[(int(x) ^ int(y)).bit_count() for y in other] for x in one])


@pytest.mark.parametrize("radius", [0, 3, 7])
def test_all_hashes_within_seven_bits_are_found(radius: int):
    rng = np.random.default_rng(radius)
    every = rng.integers(1, 1 << 63, 300, np.uint64)
    asked = every[rng.integers(0, 300, 200)]
    for _ in range(7):
        asked = asked ^ np.where(rng.random(200) < 0.7, np.uint64(1) << rng.integers(0, 64, 200).astype(np.uint64), 0)
    every[::50] = NO_HASH
    which, where, found = Bands.of(every).near(asked, radius)
    slow = bits(asked, every)
    slow[:, every == NO_HASH] = 99
    wanted = {(i, j, slow[i, j]) for i, j in zip(*np.nonzero(slow <= radius), strict=True)}
    assert set(zip(which.tolist(), where.tolist(), found.tolist(), strict=True)) == wanted


def test_many_hashes_are_looked_up_in_wider_bands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.dedup.hashes.SMALL", 10)
    every = np.random.default_rng(0).integers(1, 1 << 63, 300, np.uint64)
    bands = Bands.of(every)
    assert (bands.width, len(bands.orders)) == (21, 3)
    which, where, found = bands.near(every ^ np.uint64(0b1001), 5)
    near = set(zip(which.tolist(), where.tolist(), found.tolist(), strict=True))
    assert {(i, i, 2) for i in range(300)} <= near


def test_nothing_is_near_where_nothing_is():
    assert [len(part) for part in Bands.of(np.empty(0, np.uint64)).near(np.empty(0, np.uint64), 7)] == [0, 0, 0]
    nothing = np.array([NO_HASH])
    assert len(Bands.of(nothing).near(nothing, 7)[0]) == 0


def test_a_hundred_thousand_equal_hashes_do_not_explode():
    every = np.full(100_000, 12345, np.uint64)
    which, _, _ = Bands.of(every).near(every[:100], 7)
    assert len(which) <= 100 * 512 * 4


def test_a_turned_or_mirrored_picture_is_one_of_the_forms_of_the_other():
    grey = pictures(20)
    every = list(forms(grey))
    for turned in (grey[:, :, ::-1], grey[:, ::-1], grey.transpose(0, 2, 1), np.rot90(grey, 2, (1, 2))):
        best = np.min([np.bitwise_count(form ^ hashes(turned)) for form in every], axis=0)
        assert best.max() <= 2  # coefficients about the median round to either side


def test_different_pictures_have_hashes_far_apart_and_blank_ones_have_none():
    apart = bits(hashes(pictures(30)), hashes(pictures(30, seed=1)))
    assert apart.min() > 10
    assert hashes(np.full((2, GREY_PX, GREY_PX), 200, np.uint8)).tolist() == [NO_HASH, NO_HASH]
    assert len(hashes(np.empty((0, GREY_PX, GREY_PX), np.uint8))) == 0


@pytest.mark.parametrize(("offset", "kept"), [(0.0, 1.0), (0.5, 0.9), (1.0, 0.85)])
def test_a_window_resizes_its_part_by_areas(offset: float, kept: float):
    matrix = window(offset, kept, 16)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
    slow = np.zeros((16, GREY_PX))
    fine = 2000  # points of each pixel
    for row in range(16):
        at = (offset * (1 - kept) + kept * (row + (np.arange(fine) + 0.5) / fine) / 16) * GREY_PX
        slow[row] = np.bincount(at.astype(int), minlength=GREY_PX) / fine
    np.testing.assert_allclose(matrix, slow, atol=2e-3)
