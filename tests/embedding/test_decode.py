import io
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.embedding.decode import UPRIGHT, check_formats, open_rgb
from pipeline.embedding.fit import pixels_of
from pipeline.model import FORMATS, OPENAI_MEAN, OPENAI_STD, Limits, PreprocessSpec
from pipeline.schema import RejectedRowError
from tests.conftest import ROOT, encoded, png_header, saved

SPEC = PreprocessSpec(64, 64, OPENAI_MEAN, OPENAI_STD)
PNG = encoded(4, kind="PNG")


def opened(data: bytes, spec: PreprocessSpec = SPEC) -> np.ndarray:
    return np.asarray(open_rgb(data, spec))


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_twin_that_exif_turns_or_mirrors_is_the_same_picture(kind: str, orientation: int):
    image = Image.open(io.BytesIO(encoded(2, 96, 64, "PNG")))
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)  # a quarter turn is undone by the other one
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    twin = opened(saved(image.transpose(UPRIGHT[undo]), kind, exif=exif, **options)).astype(int)
    assert twin.shape == (64, 96, 3)
    assert np.abs(twin - np.asarray(image)).mean() < (6 if kind in ("JPEG", "AVIF") else 1e-9)


def test_where_exif_is_broken_the_picture_counts():
    image = Image.open(io.BytesIO(PNG))
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f"):
        assert opened(saved(image, "JPEG", exif=exif)).shape == (60, 80, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("fill", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_what_is_transparent_has_the_fill_colour(mode: str, fill: tuple[int, ...]):
    image = Image.new("RGBA", (64, 64), (90, 90, 90, 0))
    if mode == "P":
        image = Image.new("P", (64, 64), 0)
        image.putpalette([90, 90, 90] * 256)
        image.info["transparency"] = 0
    else:
        image = image.convert(mode)
    assert (opened(saved(image), replace(SPEC, fill=fill)) == fill).all()


def test_a_picture_with_alpha_and_its_flattened_twin_are_one():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 4), np.uint8))
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert np.abs(opened(saved(image)).astype(int) - np.asarray(flat)).max() <= 1


def test_a_level_that_stands_for_transparency_is_kept_in_16_bits():
    levels = np.full((64, 64), 30_000, np.uint16)
    levels[:, 32:] = 1234
    pixels = opened(saved(Image.fromarray(levels), transparency=1234))
    assert (pixels[:, :32] == 116).all()
    assert (pixels[:, 32:] == 255).all()


def test_palettes_are_resolved_before_anything_is_mixed():
    picture = Image.open(io.BytesIO(encoded(3, 200, 100, "PNG"))).quantize(16)
    np.testing.assert_array_equal(opened(saved(picture)), np.asarray(picture.convert("RGB")))
    reference = pixels_of(saved(picture.convert("RGB")), SPEC)
    np.testing.assert_array_equal(pixels_of(saved(picture), SPEC), reference)


@pytest.mark.parametrize(
    ("kind", "levels", "bits"), [("PNG", 65535, 16), ("TIFF", 65535, 16), ("TIFF", 4095, 12), ("TIFF", 1000, 10)]
)
def test_sixteen_bits_are_scaled_from_black_to_white_and_not_clipped(kind: str, levels: int, bits: int):
    ramp = np.tile(np.linspace(0, levels, 64).astype(np.uint16), (64, 1))
    pixels = opened(saved(Image.fromarray(ramp), kind))[:, :, 0]
    assert np.abs(pixels - ramp * (255 / (2**bits - 1))).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), np.linspace(0, 255, 64)),
        (np.linspace(0, 255, 64, dtype=np.float32), np.linspace(0, 255, 64)),
        (np.linspace(0, 60_000, 64, dtype=np.float32), np.linspace(0, 60_000 / 257, 64)),
        (np.linspace(-5, 5, 64, dtype=np.float32), np.linspace(0, 255, 64)),
        (np.linspace(0, 255, 64).astype(np.int32), np.linspace(0, 255, 64)),
        (np.linspace(0, 1 << 20, 64).astype(np.int32), np.linspace(0, 127.5, 64)),
        (np.full(64, 0.5, np.float32), np.full(64, 127.5)),
        (np.linspace(0, 1.001, 64, dtype=np.float32), np.linspace(0, 255, 64)),  # one level too high blackens nothing
        (np.full(64, -7, np.float32), np.zeros(64)),
        (np.linspace(-3e38, 3e38, 64, dtype=np.float32), np.linspace(0, 255, 64)),
        (np.array([np.nan, np.inf, -np.inf, 0] * 16, np.float32), np.zeros(64)),
    ],
)
def test_floats_and_wide_integers_are_scaled_by_what_their_range_means(values: np.ndarray, expected: np.ndarray):
    pixels = opened(saved(Image.fromarray(np.tile(values, (64, 1))), "TIFF"))
    assert np.abs(pixels[0, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "LAB", "YCbCr"])
def test_other_modes_keep_light_light_and_dark_dark(mode: str):
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    image = Image.fromarray(half)
    if mode == "LAB":
        lab = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        image = ImageCms.profileToProfile(image, *lab, outputMode="LAB")
    pixels = opened(saved(image.convert(mode) if mode != "LAB" else image, "TIFF"))
    assert pixels[:, :24].mean() < 60
    assert pixels[:, 40:].mean() > 195


def test_an_embedded_profile_changes_nothing():
    image = Image.open(io.BytesIO(PNG))
    odd = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    np.testing.assert_array_equal(opened(saved(image, icc_profile=odd)), opened(PNG))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "AVIF", "MPO"])
def test_of_several_frames_the_first_is_taken(kind: str):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    pixels = opened(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert pixels[:, :, 0].min() > 240
    assert pixels[:, :, 2].max() < 20


def test_of_ultra_hdr_the_picture_is_taken_and_the_gain_map_left():
    base, gain = encoded(7, 128, 96, quality=95), encoded(8, 32, 24)
    note = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description hdrgm:Version="1.0"/></x:xmpmeta>'
    sizes = struct.pack(">IIIHH", 0x20030000, 1, 0, 0, 0) + struct.pack(">IIIHH", 0, len(gain), 1, 0, 0)
    entries = struct.pack(">HHI4s", 0xB000, 7, 4, b"0100") + struct.pack(">HHII", 0xB001, 4, 1, 2)
    entries += struct.pack(">HHII", 0xB002, 7, 32, 8 + 2 + 36 + 4)
    index = b"MPF\0MM\0*" + struct.pack(">IH", 8, 3) + entries + struct.pack(">I", 0) + sizes
    parts = [
        b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note,
        b"\xff\xe2" + struct.pack(">H", len(index) + 2) + index,
    ]
    phone = base[:2] + b"".join(parts) + base[2:] + gain
    assert Image.open(io.BytesIO(phone)).info["mp"]  # so that Pillow, too, sees that it is one
    np.testing.assert_array_equal(opened(phone), opened(base))


def test_heif_is_opened_only_where_it_is_asked_for():
    """In a process of its own, as each decoder is: what Pillow can open is one list per process."""
    code = """
import io, sys
import pillow_heif
from PIL import Image
from pipeline.embedding.sandbox import Sandbox
from pipeline.model import FORMATS, Limits, PreprocessSpec
image = Image.new("RGB", (64, 48), "red")
written = io.BytesIO()
pillow_heif.from_pillow(image).save(written)
for formats in (FORMATS, (*FORMATS, "HEIF")):
    sandbox = Sandbox(PreprocessSpec(64, 64, (0.5,) * 3, (0.5,) * 3, limits=Limits(formats=formats)))
    pixels, [reject] = sandbox.pixels([written.getvalue()])
    print(reject.reason if reject else pixels[0, :, 32, 32].tolist())
    sandbox.close()
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    refused, red = said.splitlines()
    assert refused == "not_an_image"
    assert eval(red)[0] > 240
    assert max(eval(red)[1:]) < 20


def test_without_its_package_heif_is_an_error_that_names_the_install_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'rayclip\[heif\]'"):
        check_formats((*FORMATS, "HEIF"))
    check_formats(FORMATS)


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (None, "null", "no bytes"),
        (b"", "empty", "zero bytes"),
        (b"hello, I am a text file", "not_an_image", "none of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image", "none of"),
        (b"%PDF-1.7\n", "not_an_image", "none of"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image", "none of"),
        (encoded(5, 640, 480)[:-300], "truncated", "truncated"),
        (encoded(5)[:300], "truncated", "Truncated"),
        (PNG[: len(PNG) // 2], "truncated", "Truncated"),
        (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "decode_failed", "bad header checksum in b'IDAT'"),
        (PNG[:-13] + bytes([PNG[-13] ^ 1]) + PNG[-12:], "decode_failed", "bad header checksum in b'IDAT'"),
        (b"\xff\xd8\xff" + b"x" * 2000, "not_an_image", "none of"),
        (saved(Image.new("L", (20_000, 10_000))), "too_many_pixels", "200000000 pixels|20000 x 10000 px"),
        (saved(Image.new("1", (11_000, 10_000))), "too_many_pixels", "11000 x 10000 px, at most 100000000 px"),
        (png_header(60_000, 60_000), "too_many_pixels", "3600000000"),
    ],
)
def test_what_is_no_usable_image_is_rejected_with_its_reason(data: bytes | None, reason: str, said: str):
    with pytest.raises(RejectedRowError, match=said) as reject:
        open_rgb(data, SPEC)
    assert reject.value.reason == reason


def test_too_many_bytes_are_refused_unread():
    with pytest.raises(RejectedRowError, match="at most 10 are read") as reject:
        open_rgb(PNG, replace(SPEC, limits=Limits(max_image_bytes=10)))
    assert reject.value.reason == "too_many_bytes"


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PCX", "TGA", "ICO", "PPM", "SGI", "DDS", "JPEG2000"])
def test_formats_outside_the_list_are_not_opened(kind: str):
    assert kind not in FORMATS
    data = saved(Image.new("RGB", (64, 64), "red"), kind)
    assert Image.open(io.BytesIO(data)) if kind not in ("PDF",) else True  # Pillow itself would
    with pytest.raises(RejectedRowError, match="none of") as reject:
        open_rgb(data, SPEC)
    assert reject.value.reason == "not_an_image"


def test_broken_avif_is_a_reject_whatever_it_raises():
    good = encoded(6, kind="AVIF")
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(150):
        bad = bytearray(good)
        for place in rng.integers(0, len(bad), 4):
            bad[place] ^= int(rng.integers(1, 256))
        try:
            open_rgb(bytes(bad), SPEC)
        except RejectedRowError:
            rejected += 1
    assert rejected > 30


@pytest.mark.parametrize("resize_mode", ["pad", "shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(1600, 1200), (1200, 1600), (4000, 500), (130, 4000), (127, 127)])
def test_scaled_decoding_keeps_twice_what_the_model_sees(resize_mode: str, size: tuple[int, int]):
    data = encoded(3, *size, quality=95)
    scaled = replace(SPEC, decode="scaled", resize_mode=resize_mode)
    edge_px = max(size) if resize_mode in ("pad", "longest") else min(size)  # what becomes the model's 64
    divisor = max(d for d in (1, 2, 4, 8) if d == 1 or edge_px / d >= 2 * 64)
    assert open_rgb(data, scaled).size == (-(-size[0] // divisor), -(-size[1] // divisor))
    difference = np.abs(pixels_of(data, scaled).astype(int) - pixels_of(data, replace(scaled, decode="exact")))
    assert difference.mean() < 2


@pytest.mark.parametrize("size", [(1, 2000), (3, 4000), (4000, 7)])
def test_threads_of_pictures_are_decoded_scaled_as_they_are_exactly(size: tuple[int, int]):
    assert pixels_of(encoded(1, *size), replace(SPEC, decode="scaled")).shape == (3, 64, 64)
