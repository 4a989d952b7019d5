import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipeline import schema
from pipeline.embedding.preprocess import Preprocess, RejectedImageError, pixels_of
from pipeline.model import OPENAI_MEAN, OPENAI_STD, PreprocessSpec
from tests.conftest import encoded

SPEC = PreprocessSpec(height_px=64, width_px=64, mean=OPENAI_MEAN, std=OPENAI_STD)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def reference(data: bytes, edge: int) -> np.ndarray:
    """The ten lines that the pad preset means."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((edge, edge), Image.BICUBIC)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(64, 64), (640, 480), (37, 411), (1, 1), (2000, 3), (65, 64)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pixels_are_bit_equal_to_the_reference(size: tuple[int, int], kind: str):
    data = encoded(1, *size, kind=kind)
    np.testing.assert_array_equal(pixels_of(data, SPEC), reference(data, 64))


def test_a_model_that_is_not_square_gets_its_own_proportions():
    spec = PreprocessSpec(height_px=32, width_px=96, mean=OPENAI_MEAN, std=OPENAI_STD)
    pixels = pixels_of(saved(Image.new("RGB", (100, 100), "black")), spec)
    assert pixels.shape == (3, 32, 96)
    assert (pixels[:, :, 40:56] == 0).all()
    assert (pixels[:, :, :30] == 255).all()


def test_exif_orientation_is_applied():
    image = Image.open(io.BytesIO(encoded(2, 90, 60)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = image.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(pixels_of(saved(turned, exif=exif), SPEC), pixels_of(saved(image), SPEC))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (64, 64), 0)
        image.putpalette([0, 0, 0] * 256)
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
    assert (pixels_of(saved(image), SPEC) == 255).all()


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    pixels = pixels_of(saved(Image.fromarray(ramp)), SPEC)
    assert abs(int(pixels[0, 0, 32]) - 129) <= 3
    assert (np.diff(pixels[0, 0].astype(int)) >= 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "LAB", "F", "I"])
def test_other_modes_keep_light_light_and_dark_dark(mode: str):
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    image = Image.fromarray(half).convert("F" if mode == "I" else "L" if mode in "1F" else "RGB")
    if mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    image = image.convert(mode) if mode != "LAB" else image
    pixels = pixels_of(saved(image, "TIFF"), SPEC)
    assert pixels[:, :, :24].mean() < 60
    assert pixels[:, :, 40:].mean() > 195


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    pixels = pixels_of(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), SPEC)
    assert pixels[0].min() > 240
    assert pixels[2].max() < 15


def test_scaled_decoding_is_close_to_exact_decoding():
    data = encoded(3, 1600, 1200, quality=95)
    scaled = PreprocessSpec(64, 64, OPENAI_MEAN, OPENAI_STD, decode="scaled")
    difference = np.abs(pixels_of(data, scaled).astype(int) - pixels_of(data, SPEC).astype(int))
    assert difference.mean() < 2


PNG = encoded(4, kind="PNG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "null"),
        (b"", "empty"),
        (b"hello, I am a text file", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (encoded(5, 640, 480)[:-300], "truncated"),
        (encoded(5)[:300], "decode_failed"),
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "decode_failed"),
        (b"\xff\xd8\xff" + b"x" * 2000, "not_an_image"),
        (saved(Image.new("L", (20_000, 10_000)), "PNG"), "too_many_pixels"),
        (saved(Image.new("1", (14_000, 14_000)), "PNG"), "too_many_pixels"),
    ],
)
def test_what_is_no_usable_image_is_rejected_with_its_reason(data: bytes | None, reason: str):
    with pytest.raises(RejectedImageError) as reject:
        pixels_of(data, SPEC)
    assert reject.value.reason == reason


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (300, 20_000)])
def test_a_thread_of_a_picture_does_not_ask_for_gigabytes(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    data, new, asked = saved(Image.new("RGB", size, "black")), Image.new, []

    def watched(mode: str, wanted: tuple[int, int], *colour: object) -> Image.Image:
        asked.append(wanted[0] * wanted[1])
        return new(mode, wanted, *colour)

    monkeypatch.setattr(Image, "new", watched)
    pixels = pixels_of(data, SPEC)
    assert max(asked) <= SPEC.max_image_pixels < max(size) ** 2
    along = pixels[0].min(axis=0 if size[1] > size[0] else 1)
    assert along[:24].min() == 255  # white on either side
    assert along[32 - 1 : 32 + 1].min() < 255 or size[0] * size[1] < 100_000


def test_broken_avif_is_a_reject_whatever_it_raises():
    good = encoded(6, kind="AVIF")
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(150):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 4):
            bad[place] ^= int(rng.integers(1, 256))
        try:
            pixels_of(bytes(bad), SPEC)
        except RejectedImageError:
            rejected += 1
    assert rejected > 30


def test_too_many_bytes_are_refused_unread():
    with pytest.raises(RejectedImageError, match="at most 10 are read"):
        pixels_of(PNG, PreprocessSpec(8, 8, OPENAI_MEAN, OPENAI_STD, max_image_bytes=10))


def batch(images: list[bytes | None]) -> pa.Table:
    nothing = pa.nulls(len(images), pa.string())
    return pa.table(
        {
            schema.ROW: pa.array(range(100, 100 + len(images)), pa.int64()),
            schema.IMAGE: pa.array(images, pa.large_binary()),
            schema.REASON: nothing,
            schema.ERROR: nothing,
        }
    )


@pytest.mark.parametrize("images", [[], [PNG], [PNG, None, b"text", PNG], [None, b""]])
def test_every_row_keeps_its_place(images: list[bytes | None]):
    rows = Preprocess(SPEC)(batch(images))
    assert rows.num_rows == len(images)
    pixels = rows[schema.PIXELS].combine_chunks().flatten().to_numpy().reshape(-1, 3, 64, 64)
    for i, image in enumerate(images):
        good = image == PNG
        assert (rows[schema.REASON][i].as_py() is None) == good
        assert pixels[i].any() == good
    assert schema.IMAGE not in rows.column_names


def test_a_reject_is_worded_with_its_row():
    rows = Preprocess(SPEC)(batch([None, b"text"]))
    assert rows[schema.ERROR][0].as_py() == "Null or missing image input"
    assert rows[schema.ERROR][1].as_py().startswith("Failed to decode image at row 101: none of JPEG")


def test_a_row_that_was_rejected_before_keeps_its_reason():
    before = schema.replace_columns(batch([None]), [], schema.outcome_columns(["fetch_not_found"], ["gone"]))
    rows = Preprocess(SPEC)(before)
    assert rows[schema.REASON].to_pylist() == ["fetch_not_found"]
    assert rows[schema.ERROR].to_pylist() == ["gone"]
