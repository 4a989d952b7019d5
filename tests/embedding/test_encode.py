import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import model, schema
from pipeline.embedding.encode import Encode, EncodeSpec
from pipeline.embedding.preprocess import pixel_array
from pipeline.errors import InputError
from tests.conftest import DEMO_MODEL


def spec(folder: Path = DEMO_MODEL, **fields: object) -> EncodeSpec:
    checkpoint = model.resolve(str(folder))
    pixels = checkpoint.preprocess_spec("pad", "exact", 1 << 20, 1 << 20)
    space = checkpoint.space(pixels, fields.get("dimensions"))
    return EncodeSpec(checkpoint.name, space, pixels, **{"precision": "fp32", **fields})


@pytest.fixture(scope="module")
def encoder() -> Encode:
    return Encode(spec())


def some_pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 64, 64), np.uint8)


def batch(pixels: np.ndarray, reasons: list[str | None]) -> pa.Table:
    return pa.table(
        {
            schema.ROW: list(range(len(pixels))),
            schema.PIXELS: pixel_array(pixels),
            **schema.outcome_columns(reasons, reasons),
        }
    )


def test_vectors_equal_open_clips_own_on_the_same_pixels(encoder: Encode):
    reference, _, _ = open_clip.create_model_and_transforms(f"local-dir:{DEMO_MODEL}")
    pixels = some_pixels(70)
    wanted = model.resolve(str(DEMO_MODEL)).config["preprocess_cfg"]
    mean, std = (torch.tensor(wanted[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        images = (torch.from_numpy(pixels).float() / 255 - mean) / std
        expected = reference.eval().encode_image(images, normalize=True).numpy()
    cosines = (encoder.encode_images(pixels) * expected).sum(axis=1)
    assert cosines.min() >= 0.9999


def test_texts_equal_open_clips_own(encoder: Encode):
    reference = open_clip.create_model(f"local-dir:{DEMO_MODEL}").eval()
    texts = ["a red star", "a small blue circle at the top left on a white background"]
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer(f"local-dir:{DEMO_MODEL}")(texts)
        expected = reference.encode_text(tokens, normalize=True).numpy()
    assert ((encoder.encode_texts(texts) * expected).sum(axis=1) >= 0.9999).all()


def test_bf16_is_close_to_fp32(encoder: Encode):
    pixels = some_pixels(64)
    cosines = (Encode(spec(precision="bf16")).encode_images(pixels) * encoder.encode_images(pixels)).sum(axis=1)
    assert cosines.min() >= 0.999


def test_the_size_of_a_batch_does_not_change_a_vector(encoder: Encode):
    pixels = some_pixels(9)
    whole = encoder.encode_images(pixels)
    single = Encode(spec(batch_size=1)).encode_images(pixels)
    np.testing.assert_allclose(whole, single, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 65])
def test_every_row_gets_a_vector_of_norm_one(encoder: Encode, count: int):
    rows = encoder(batch(some_pixels(count), [None] * count))
    assert rows[schema.VECTOR].type == pa.list_(pa.float32(), 64)
    vectors = rows[schema.VECTOR].combine_chunks().flatten().to_numpy().reshape(-1, 64)
    assert len(vectors) == count
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)


def test_rejected_rows_keep_their_place_and_do_not_touch_the_others(encoder: Encode):
    pixels = some_pixels(5)
    rows = encoder(batch(pixels, [None, "null", None, "truncated", None]))
    vectors = rows[schema.VECTOR].combine_chunks().flatten().to_numpy().reshape(-1, 64)
    np.testing.assert_allclose(vectors[[0, 2, 4]], encoder.encode_images(pixels[[0, 2, 4]]), atol=1e-5)
    assert not vectors[[1, 3]].any()
    assert rows[schema.REASON].to_pylist() == [None, "null", None, "truncated", None]


def test_a_batch_of_rejects_only_is_fine(encoder: Encode):
    rows = encoder(batch(some_pixels(2), ["null", "null"]))
    assert rows[schema.REASON].to_pylist() == ["null", "null"]


def changed_weights(folder: Path, **changes: torch.Tensor) -> Path:
    shutil.copytree(DEMO_MODEL, folder)
    state = load_file(folder / model.WEIGHTS_FILE)
    save_file({**state, **changes}, folder / model.WEIGHTS_FILE)
    return folder


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_vector_without_direction_is_a_reject(tmp_path: Path, value: float):
    folder = changed_weights(tmp_path / "model", **{"visual.proj": torch.full((128, 64), value)})
    rows = Encode(spec(folder))(batch(some_pixels(2), [None, "null"]))
    assert rows[schema.REASON].to_pylist() == ["zero_vector", "null"]
    assert rows[schema.ERROR][0].as_py().startswith("Failed to encode image at row 0")


def test_the_first_dimensions_are_kept_and_normalised_again(encoder: Encode):
    pixels = some_pixels(3)
    short = Encode(spec(dimensions=16)).encode_images(pixels)
    whole = encoder.encode_images(pixels)[:, :16]
    np.testing.assert_allclose(short, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)


def test_a_model_of_another_space_is_refused(tmp_path: Path):
    planned = spec()
    folder = changed_weights(tmp_path / "model", logit_scale=torch.tensor(1.0))
    with pytest.raises(InputError, match=f"wanted {planned.space}"):
        Encode(replace(planned, model=str(folder)))
    shutil.copy(DEMO_MODEL / model.WEIGHTS_FILE, folder)
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"wanted {planned.space}"):
        Encode(replace(planned, model=str(folder)))


def test_a_model_that_is_not_square_is_encoded(tmp_path: Path):
    config = json.loads((DEMO_MODEL / model.CONFIG_FILE).read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = [32, 64]
    folder = tmp_path / "wide"
    folder.mkdir()
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    state = open_clip.create_model(f"local-dir:{folder}", load_weights=False).state_dict()
    save_file(state, folder / model.WEIGHTS_FILE)
    pixels = np.zeros((2, 3, 32, 64), np.uint8)
    assert Encode(spec(folder)).encode_images(pixels).shape == (2, 64)
