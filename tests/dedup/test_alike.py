import numpy as np
import pytest
from PIL import Image

from pipeline.dedup.alike import colours, have_one_colour, likeness
from pipeline.dedup.hashes import GREY_PX
from tests.dedup.test_hashes import pictures


def large(count: int) -> list[Image.Image]:
    coarse = np.random.default_rng(3).integers(0, 256, (count, 9, 9), np.uint8)
    return [Image.fromarray(one).resize((320, 320), Image.Resampling.BICUBIC) for one in coarse]


def small(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image.resize((GREY_PX, GREY_PX), Image.Resampling.BOX)) for image in images])


def test_a_picture_is_wholly_like_itself_however_turned_mirrored_or_lit():
    grey = pictures(12)
    darker = (grey * 0.5 + 20).astype(np.uint8)
    for other in (grey, grey[:, ::-1], grey[:, :, ::-1], grey.transpose(0, 2, 1), np.rot90(grey, 1, (1, 2)), darker):
        np.testing.assert_allclose(likeness(grey, np.ascontiguousarray(other), 0.9), 1, atol=0.01)


@pytest.mark.parametrize("box", [(0, 0, 290, 300), (30, 20, 320, 320), (15, 25, 290, 310)])
def test_a_cut_picture_is_like_the_whole_one_either_way_round(box: tuple[int, int, int, int]):
    whole, cut = small(large(8)), small([image.crop(box) for image in large(8)])
    plain = [float(np.corrcoef(x.ravel(), y.ravel())[0, 1]) for x, y in zip(whole, cut, strict=True)]
    found = likeness(whole, cut, 0.92)
    assert found.min() > 0.92
    assert min(plain) < 0.9  # without laying parts of one on the other
    np.testing.assert_allclose(likeness(cut, whole, 0.92), found, atol=1e-5)


def test_different_pictures_are_not_alike_and_blank_ones_like_nothing():
    assert likeness(pictures(30), pictures(30, seed=1), 0.92).max() < 0.85
    blank = np.full((3, GREY_PX, GREY_PX), 7, np.uint8)
    np.testing.assert_allclose(likeness(blank, pictures(3), 0.9), 0, atol=1e-4)
    assert len(likeness(blank[:0], blank[:0], 0.9)) == 0


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="wanted pictures of 32 x 32"):
        likeness(np.zeros((1, 8, 8), np.uint8), np.zeros((1, 8, 8), np.uint8), 0.9)


def test_colours_tell_pictures_apart_that_are_alike_in_grey():
    ground = np.full((4, 3, 32, 32), 150, np.uint8)
    for picture, colour in zip(ground, [(214, 40, 40), (40, 80, 210), (214, 40, 40), (190, 60, 50)], strict=True):
        picture[:, 8:20, 8:20] = np.array(colour, np.uint8)[:, None, None]
    found = colours(ground)
    assert have_one_colour(found[[0, 0, 0]], found[[1, 2, 3]]).tolist() == [False, True, True]
    mirrored = colours(np.ascontiguousarray(ground[:, :, :, ::-1]))
    assert (mirrored == found).all()
