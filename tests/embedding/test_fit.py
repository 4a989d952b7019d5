import io
from dataclasses import replace

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image

from jobs.benchmark.material import photographs
from pipeline.embedding import fit
from pipeline.embedding.fit import fitted, pixels_of
from pipeline.model import OPENAI_MEAN, OPENAI_STD, Limits, PreprocessSpec
from tests.conftest import encoded, saved

SPEC = PreprocessSpec(64, 64, OPENAI_MEAN, OPENAI_STD)
SIZES = [(64, 64), (640, 480), (37, 411), (1, 1), (2000, 3), (65, 64), (63, 64), (301, 299), (50, 20)]


def padded(data: bytes, edge: int) -> np.ndarray:
    """The ten lines that the pad preset means."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((edge, edge), Image.BICUBIC)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_padded_pixels_are_bit_equal_to_ten_lines_of_pillow(size: tuple[int, int], kind: str):
    data = encoded(1, *size, kind=kind)
    np.testing.assert_array_equal(pixels_of(data, SPEC), padded(data, 64))


def test_no_limit_changes_a_pixel():
    for size in ((1200, 400), (400, 1200), (40, 1000), (1000, 40)):
        data = encoded(2, *size)
        small = replace(SPEC, limits=Limits(max_image_bytes=1 << 20, max_image_pixels=500_000, max_decode_s=1.0))
        np.testing.assert_array_equal(pixels_of(data, small), padded(data, 64))


@pytest.mark.parametrize("size", [(12_000, 4_000), (600, 9_000)])
def test_large_pictures_are_padded_bit_by_bit_too(size: tuple[int, int]):
    data = encoded(2, *size)
    np.testing.assert_array_equal(pixels_of(data, SPEC), padded(data, 64))


def test_photographs_are_padded_bit_by_bit_too():
    for image in photographs():
        data = saved(image)
        np.testing.assert_array_equal(pixels_of(data, replace(SPEC, height_px=224, width_px=224)), padded(data, 224))


def transformed(image: Image.Image, spec: PreprocessSpec, size: int | tuple[int, int], fill: int) -> np.ndarray:
    """OpenCLIP's own eval transform; dividing by 255 and back is exact in float32 once it is rounded."""
    transform = image_transform(
        size,
        is_train=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        resize_mode=spec.resize_mode,
        interpolation=spec.interpolation,
        fill_color=fill,
    )
    return (transform(image).numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "fill"), [(64, 0), (224, 255), ((48, 96), 0), ((96, 48), 7)])
def test_the_models_own_fit_is_bit_equal_to_open_clips_transform(
    resize_mode: str, interpolation: str, size: int | tuple[int, int], fill: int
):
    height, width = (size, size) if isinstance(size, int) else size
    spec = PreprocessSpec(height, width, OPENAI_MEAN, OPENAI_STD, resize_mode, interpolation, (fill,) * 3)
    images = [Image.open(io.BytesIO(encoded(i, *size, "PNG"))) for i, size in enumerate(SIZES) if min(size) > 3]
    for image in [*images, *photographs()]:
        np.testing.assert_array_equal(fitted(image, spec), transformed(image, spec, size, fill))


def test_a_model_that_is_not_square_gets_its_own_proportions():
    spec = replace(SPEC, height_px=32, width_px=96)
    pixels = pixels_of(saved(Image.new("RGB", (100, 100), "black")), spec)
    assert pixels.shape == (3, 32, 96)
    assert (pixels[:, :, 40:56] == 0).all()
    assert (pixels[:, :, :30] == 255).all()


@pytest.mark.parametrize("resize_mode", ["pad", "shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (300, 20_000), (20_000, 300), (1, 1)])
def test_a_thread_of_a_picture_does_not_ask_for_gigabytes(
    size: tuple[int, int], resize_mode: str, monkeypatch: pytest.MonkeyPatch
):
    image, new, resize, asked = Image.new("RGB", size, "black"), Image.new, Image.Image.resize, [0]

    def watched_new(mode: str, wanted: tuple[int, int], *colour: object) -> Image.Image:
        asked.append(wanted[0] * wanted[1])
        return new(mode, wanted, *colour)

    def watched_resize(self: Image.Image, wanted: tuple[int, int], *how: object) -> Image.Image:
        asked.append(wanted[0] * wanted[1])
        return resize(self, wanted, *how)

    monkeypatch.setattr(Image, "new", watched_new)
    monkeypatch.setattr(Image.Image, "resize", watched_resize)
    spec = replace(SPEC, resize_mode=resize_mode)
    pixels = fitted(image, spec)
    assert max(asked) <= fit.MAX_RESIZED_PIXELS
    assert pixels.shape == (3, 64, 64)
    if resize_mode in ("shortest", "squash"):
        assert not pixels.any()  # nothing but the picture
    elif size != (1, 1):
        along = pixels[0].min(axis=0 if size[1] > size[0] else 1)
        assert along[:24].min() == 255  # white on either side of it
        assert along[31:33].min() < 255 or size[0] * size[1] < 100_000
