import contextlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jobs.benchmark import parity
from jobs.benchmark.material import make_text_parts, photographs
from pipeline import model, schema
from pipeline.embedding.decode import UPRIGHT
from pipeline.embedding.encode import Encode
from pipeline.embedding.fit import pixels_of
from pipeline.embedding.preprocess import pixel_array
from pipeline.errors import InputError
from pipeline.model import EncodeSpec
from tests.conftest import DEMO_MODEL, saved


def spec(folder: Path = DEMO_MODEL, **fields: object) -> EncodeSpec:
    checkpoint = model.resolve(str(folder))
    pixels = checkpoint.preprocess_spec("pad")
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
            schema.KNOWN: pa.nulls(len(pixels), pa.binary()),
            schema.ENCODER: pa.nulls(len(pixels), pa.string()),
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


def test_out_of_memory_halves_the_batch_and_loses_no_row(encoder: Encode, monkeypatch: pytest.MonkeyPatch):
    pixels = some_pixels(70)
    cramped, sizes = Encode(spec(batch_size=64)), []
    encode = cramped.model.encode_image

    def encode_at_most_10(levels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(levels))
        if len(levels) > 10:
            raise torch.OutOfMemoryError("no memory for so many")
        return encode(levels)

    monkeypatch.setattr(cramped.model, "encode_image", encode_at_most_10)
    np.testing.assert_allclose(cramped.encode_images(pixels), encoder.encode_images(pixels), atol=1e-5)
    assert sizes[:3] == [35, 14, 7]  # 70 rows by 64, by 17, by 7
    assert max(sizes[2:]) <= 10
    monkeypatch.setattr(cramped.model, "encode_image", lambda levels: torch.empty(1 << 60))
    with pytest.raises(RuntimeError, match="can't allocate memory"):  # not even for one
        cramped.encode_images(pixels[:1])


def test_an_error_that_is_not_of_memory_is_not_hidden(encoder: Encode, monkeypatch: pytest.MonkeyPatch):
    def broken(levels: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    broken_encoder = Encode(spec())
    monkeypatch.setattr(broken_encoder.model, "encode_image", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        broken_encoder.encode_images(some_pixels(40))


def test_vectors_that_are_not_normalised_are_open_clips_own(encoder: Encode):
    reference = open_clip.create_model(f"local-dir:{DEMO_MODEL}").eval()
    texts, short = ["a red star", "a blue ring"], Encode(spec(dimensions=16))
    with torch.inference_mode():
        expected = reference.encode_text(open_clip.get_tokenizer(f"local-dir:{DEMO_MODEL}")(texts)).numpy()
    assert (np.linalg.norm(expected, axis=1) > 2).all()
    np.testing.assert_allclose(encoder.encode_texts(texts, normalised=False), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(short.encode_texts(texts, normalised=False), expected[:, :16], rtol=1e-3, atol=1e-3)
    own = encoder.encode_images(some_pixels(3), normalised=False)
    unit = own / np.linalg.norm(own, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.encode_images(some_pixels(3)), unit, atol=1e-6)
    assert encoder.encode_images(some_pixels(0), normalised=False).shape == (0, 64)


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


def test_the_file_that_was_digested_is_the_one_that_is_loaded(encoder: Encode, tmp_path: Path):
    folder = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    for name in ("a.safetensors", "model.safetensors", "open_clip_pytorch_model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"not weights")
    pixels = some_pixels(3)
    np.testing.assert_array_equal(Encode(spec(folder)).encode_images(pixels), encoder.encode_images(pixels))


def test_a_pickle_is_loaded_where_it_is_allowed_and_runs_no_code(encoder: Encode, tmp_path: Path):
    folder = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    torch.save(load_file(folder / model.WEIGHTS_FILE), folder / "open_clip_pytorch_model.bin")
    (folder / model.WEIGHTS_FILE).unlink()
    checkpoint = model.resolve(str(folder), allow_pickle_weights=True)
    planned = checkpoint.preprocess_spec("pad")
    wanted = EncodeSpec(str(folder), checkpoint.space(planned, None), planned, "fp32", allow_pickle_weights=True)
    pixels = some_pixels(3)
    np.testing.assert_array_equal(Encode(wanted).encode_images(pixels), encoder.encode_images(pixels))
    with pytest.raises(InputError, match="are a pickle"):
        Encode(replace(wanted, allow_pickle_weights=False))
    flag = tmp_path / "flag"
    with (folder / "open_clip_pytorch_model.bin").open("wb") as file:
        pickle.dump(Trap(str(flag)), file)
    changed = model.resolve(str(folder), allow_pickle_weights=True)
    with pytest.raises(pickle.UnpicklingError):
        Encode(replace(wanted, space=changed.space(planned, None)))
    assert not flag.exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize(
    "architecture",
    ["ViT-B-32-quickgelu", "RN50", "coca_ViT-B-32", "ViT-B-32-SigLIP2-256", "MobileCLIP2-S0", "roberta-ViT-B-32"],
)
def test_every_family_is_built_by_its_own_config(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Small versions of real configs against OpenCLIP's own model, transform and tokenizer; `jobs.benchmark parity`
    measures the real ones."""
    config = open_clip.get_model_config(architecture)
    shrink(config)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    made = parity.measure(tmp_path / architecture, architecture, photographs()[:3])
    assert min(made.pad, made.model, made.text, made.centred) >= parity.FP32_BAR
    assert min(made.pad_bf16, made.model_bf16, made.text_bf16) >= parity.BF16_BAR
    assert made.other_photographs < 0.99  # so that a mix-up would show


def shrink(config: dict) -> None:
    """Make towers of two layers and tables of few words, where the config leaves it open."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    if isinstance(vision.get("layers"), int):
        vision["layers"] = 2
    text.update(layers=2, vocab_size=min(text.get("vocab_size", 49408), 49408))
    if "multimodal_cfg" in config:
        config["multimodal_cfg"]["layers"] = 2


def test_twins_that_exif_turns_or_that_are_flattened_have_one_vector(encoder: Encode):
    image = photographs()[1]
    (plain,) = vectors_of(encoder, [saved(image, "JPEG", quality=95)])
    twins = []
    for orientation, turn in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        undone = {6: UPRIGHT[8], 8: UPRIGHT[6]}.get(orientation, turn)
        twins.append(saved(image.transpose(undone), "JPEG", quality=95, exif=exif))
    assert len(twins) == 7
    assert (vectors_of(encoder, twins) @ plain).min() >= 0.999
    clear = image.copy()
    clear.putalpha(Image.radial_gradient("L").resize(image.size))
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear).convert("RGB")
    one, other = vectors_of(encoder, [saved(clear), saved(flat)])
    assert one @ other >= 0.999
    assert one @ plain < 0.999  # so that a mix-up would show


def vectors_of(encoder: Encode, images: list[bytes]) -> np.ndarray:
    return encoder.encode_images(np.stack([pixels_of(image, encoder.spec.preprocess) for image in images]))


def test_a_text_tower_without_its_tokenizer_still_encodes_images_and_says_what_is_missing(tmp_path: Path):
    folder = Path(shutil.copytree(DEMO_MODEL, tmp_path / "model"))
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/tokenizer"
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    encoder = Encode(spec(folder))
    assert np.isfinite(encoder.encode_images(some_pixels(1))).all()
    with pytest.raises(InputError, match=r"has no tokenizer\.json or the like; .* wants that of someone/"):
        encoder.encode_texts(["a red star"])


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path):
    folder = tokenized(tmp_path / "model")
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'flag')!r}, 'w')\n")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about.update(tokenizer_class="Trap", auto_map={"AutoTokenizer": ["trap.Trap", "trap.Trap"]})
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(InputError, match="wants trust_remote_code; code of a checkpoint is never run"):
        spec(folder)
    del config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    with contextlib.suppress(ValueError):  # or it is read without the code
        Encode(spec(folder)).encode_texts(["a red star"])
    assert not (tmp_path / "flag").exists()


def tokenized(folder: Path) -> Path:
    """The demo's model with a tokenizer of transformers."""
    shutil.copytree(DEMO_MODEL, folder)
    config = json.loads((folder / model.CONFIG_FILE).read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "someone/tokenizer"
    (folder / model.CONFIG_FILE).write_text(json.dumps(config))
    make_text_parts(folder, config["model_cfg"]["text_cfg"])
    return folder


def test_vectors_say_what_they_were_computed_with(encoder: Encode):
    rows = encoder(batch(some_pixels(2), [None, None]))
    [description] = set(rows[schema.ENCODER].to_pylist())
    assert description.startswith("cpu fp32 torch 2.")
    assert f"open_clip_torch {open_clip.__version__}" in description


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
