"""Which checkpoint: from a name to files on this machine, their digests, what they ask of a picture, and the space.

In: the name a user gives. Out: a `Checkpoint`. Files come from a local folder or from the Hugging Face hub through its
own client and cache; safetensors, unless pickles are allowed. Knows nothing of torch: what a checkpoint is can be told
from its files, without spending seconds on imports or memory on weights.
"""

import fnmatch
import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config import FORMATS, Decode, Fit, Format, Precision
from pipeline.errors import InputError
from pipeline.filesystem import sha256_of

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# What OpenCLIP has called its weights; model.safetensors, beside them, is most often transformers' own.
SAFE_WEIGHTS = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors")
PICKLED_WEIGHTS = ("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin")
TEXT_CONFIG_FILE = "config.json"  # of a text tower that is a model of transformers
# A text tower's own tokenizer may be any of these; picture formats and other frameworks' weights stay on the hub.
TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model")

# open_clip.transform.PreprocessCfg and open_clip.constants, which a config overrides in part.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
WHITE = (255, 255, 255)

ResizeMode = Literal["pad", "shortest", "longest", "squash"]  # ours, then open_clip's
RESIZE_MODES: dict[str, ResizeMode] = {"shortest": "shortest", "longest": "longest", "squash": "squash"}
# What open_clip's eval transform makes of each.
INTERPOLATIONS: dict[str, Literal["bicubic", "bilinear"]] = {
    "bicubic": "bicubic",
    "bilinear": "bilinear",
    "random": "bicubic",
}


# Of each pixel of a picture: as decoded, over the fill colour, turned, and in RGB, four bytes each.
BYTES_PER_PIXEL = 16


@dataclass(frozen=True)
class Limits:
    """What one image may cost; no limit changes a vector."""

    formats: tuple[Format, ...] = FORMATS
    max_image_bytes: int = 64 << 20
    max_image_pixels: int = 100_000_000
    max_decode_s: float = 10.0  # of processor time

    @property
    def picture_bytes(self) -> int:
        """Give what decoding one picture may take in memory."""
        return BYTES_PER_PIXEL * self.max_image_pixels + 2 * self.max_image_bytes


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class PreprocessSpec:
    """How a picture becomes pixels. All of it is part of the space, limits and thumbnails apart."""

    height_px: int
    width_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_mode: ResizeMode = "pad"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: tuple[int, ...] = WHITE  # behind transparency, and around a picture that is padded
    decode: Decode = "exact"
    limits: Limits = DEFAULT_LIMITS
    thumbnail_px: int | None = None  # the longer edge of a thumbnail that is made beside the pixels

    @property
    def thumbnail_bytes(self) -> int:
        """Give the most that a thumbnail may take: a byte a pixel, five times what photographs do."""
        return 0 if self.thumbnail_px is None else self.thumbnail_px**2

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one picture's pixels."""
        return 3 * self.height_px * self.width_px


@dataclass(frozen=True)
class EncodeSpec:
    """Which weights, in which precision, and what of their output is kept."""

    model: str  # as resolve takes it, on whatever machine the encoder runs
    space: str  # what is loaded must be of it
    preprocess: PreprocessSpec
    precision: Precision | None = None
    dimensions: int | None = None
    batch_size: int | None = None
    threads: int | None = None  # CPU threads; None leaves torch's choice
    allow_pickle_weights: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """An OpenCLIP model whose files lie in ``folder``."""

    name: str  # resolves to the same files again, on any machine that can reach them
    model_id: str  # what _model_id says: short, and different for different weights
    revision: str  # the hub's commit; for a folder, the digest of its weights
    folder: Path
    weights: str  # the file's name
    config: dict[str, Any]  # open_clip_config.json as it stands; its values have every JSON type
    sha256: dict[str, str]  # per file: config, weights, and what a tokenizer may consist of
    text_folder: Path | None  # where the config of a text tower of transformers lies; None for OpenCLIP's own towers

    @property
    def embed_dim(self) -> int:
        """Width of the vectors of both towers."""
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def tokenizer_sha256(self) -> dict[str, str]:
        """Digests of the tokenizer's files; none if the text tower uses the one that is part of OpenCLIP."""
        if not self.config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name"):
            return {}
        others = (CONFIG_FILE, self.weights, TEXT_CONFIG_FILE)
        return {name: digest for name, digest in self.sha256.items() if name not in others}

    def preprocess_spec(self, fit: Fit, decode: Decode = "exact", limits: Limits = DEFAULT_LIMITS) -> PreprocessSpec:
        """Combine what the checkpoint's config says of pixels with what the user chose.

        Raises:
            InputError: the config asks for a way of resizing that OpenCLIP does not have.
        """
        size = self.config["model_cfg"]["vision_cfg"].get("image_size", 224)
        height_px, width_px = size if isinstance(size, list) else (size, size)
        wanted = self.config.get("preprocess_cfg") or {}
        ours = PreprocessSpec(
            height_px=int(height_px),
            width_px=int(width_px),
            mean=tuple(float(level) for level in _three(wanted.get("mean") or OPENAI_MEAN)),
            std=tuple(float(level) for level in _three(wanted.get("std") or OPENAI_STD)),
            decode=decode,
            limits=limits,
        )
        if fit == "pad":
            return ours
        resize_mode, interpolation = wanted.get("resize_mode") or "shortest", wanted.get("interpolation") or "bicubic"
        if resize_mode not in RESIZE_MODES or interpolation not in INTERPOLATIONS:
            raise InputError(
                f"model {self.name!r}: {CONFIG_FILE} wants resize_mode {resize_mode!r} and interpolation "
                f"{interpolation!r}; OpenCLIP has {', '.join(RESIZE_MODES)} and {', '.join(INTERPOLATIONS)}"
            )
        fill = tuple(int(level) for level in _three(wanted.get("fill_color") or 0))
        return replace(
            ours, resize_mode=RESIZE_MODES[resize_mode], interpolation=INTERPOLATIONS[interpolation], fill=fill
        )

    def space(self, spec: PreprocessSpec, dimensions: int | None) -> str:
        """Hash what makes vectors comparable: model config, weights, tokenizer, preprocessing, output dimensions.

        It is made of contents, not of names: a copy of the files elsewhere, or a revision that only mends a text, has
        the same space.
        """
        parts = {
            "model_cfg": self.config["model_cfg"],
            "weights": self.sha256[self.weights],
            "tokenizer": self.tokenizer_sha256,
            "text_tower": self.sha256.get(TEXT_CONFIG_FILE),
            "size": [spec.height_px, spec.width_px],
            "colours": [spec.mean, spec.std, spec.fill],
            "pixels": [spec.resize_mode, spec.interpolation, spec.decode],
            "dimensions": dimensions or self.embed_dim,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def resolve(name: str, *, allow_pickle_weights: bool = False, expected_sha256: str | None = None) -> Checkpoint:
    """Find a checkpoint's files, fetching them if need be, and digest them.

    Args:
        name: a folder, ``ViT-B-32/laion2b_s34b_b79k`` (architecture/tag of OpenCLIP's own list), ``org/name`` or
            ``hf-hub:org/name``, the last two with ``@revision`` if wanted.
        allow_pickle_weights: take a PyTorch pickle where there are no safetensors.
        expected_sha256: of the weights file, or its first digits.

    Raises:
        InputError: no such folder, name, tag, revision or file; other weights than expected.
    """
    folder = Path(name.removeprefix("local-dir:"))
    if folder.is_dir():
        folder = folder.resolve()
        found = _checkpoint(str(folder), folder.name, None, folder, allow_pickle_weights)
    elif name.startswith(("local-dir:", ".", "/", "~")):
        raise InputError(f"model {name!r}: no such folder")
    else:
        repository, _, revision = name.removeprefix("hf-hub:").partition("@")
        if not name.startswith("hf-hub:") and _is_architecture(repository.split("/")[0]):
            repository = _repository_of_tag(repository)
        wanted = [CONFIG_FILE, *SAFE_WEIGHTS, *TOKENIZER_FILES]
        folder = _download(name, repository, revision or None, wanted)
        if allow_pickle_weights and not any((folder / file).is_file() for file in SAFE_WEIGHTS):
            folder = _download(name, repository, folder.name, [*wanted, *PICKLED_WEIGHTS])
        commit = folder.name  # the hub's cache keeps each revision in a folder named by its commit
        found = _checkpoint(f"hf-hub:{repository}@{commit}", repository, commit, folder, allow_pickle_weights)
    if expected_sha256 and not found.sha256[found.weights].startswith(expected_sha256.lower()):
        raise InputError(
            f"model {name!r}: {found.weights} has SHA-256 {found.sha256[found.weights]}, wanted {expected_sha256}"
        )
    return found


def _checkpoint(name: str, title: str, revision: str | None, folder: Path, allow_pickle_weights: bool) -> Checkpoint:
    config = _read_config(name, folder)
    weights = _weights_file(name, folder, allow_pickle_weights)
    wanted = (CONFIG_FILE, weights, *TOKENIZER_FILES)
    sha256 = {
        path.name: sha256_of(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in wanted)
    }
    text_folder = _text_folder(name, config["model_cfg"].get("text_cfg", {}).get("hf_model_name"))
    if text_folder:
        sha256[TEXT_CONFIG_FILE] = sha256_of(text_folder / TEXT_CONFIG_FILE)
    revision = revision or sha256[weights]
    return Checkpoint(name, f"{title}@{revision[:12]}", revision, folder, weights, config, sha256, text_folder)


def _text_folder(name: str, hf_model_name: str | None) -> Path | None:
    """Find the config of a text tower of transformers, which lies in another repository, at whatever it is today."""
    if not hf_model_name:
        return None
    folder = Path(hf_model_name)
    if not folder.is_dir():
        folder = _download(f"{name}, text tower {hf_model_name}", hf_model_name, None, [TEXT_CONFIG_FILE])
    try:
        runs_code = "auto_map" in json.loads((folder / TEXT_CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model {name!r}: no {TEXT_CONFIG_FILE} of its text tower {hf_model_name}: {error}") from error
    if runs_code:
        raise InputError(f"model {name!r}: text tower {hf_model_name} wants auto_map; such code is never run")
    return folder


def _read_config(name: str, folder: Path) -> dict[str, Any]:  # its values have every JSON type
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"model {name!r}: {folder} has no {CONFIG_FILE}; wanted an OpenCLIP checkpoint")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        int(config["model_cfg"]["embed_dim"]), dict(config["model_cfg"]["vision_cfg"])
        wanted = config.get("preprocess_cfg") or {}
        [float(level) for key in ("mean", "std") for level in _three(wanted.get(key) or 0)]
        text = config["model_cfg"].get("text_cfg", {})
        # OpenCLIP hands these on to transformers, which would run code that lies beside, or far from, the weights.
        runs_code = text.get("tokenizer_kwargs", {}).get("trust_remote_code", False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"model {name!r}: {CONFIG_FILE} is not OpenCLIP's: {error!r}") from error
    if runs_code:
        raise InputError(f"model {name!r}: {CONFIG_FILE} wants trust_remote_code; code of a checkpoint is never run")
    return config


def _weights_file(name: str, folder: Path, allow_pickle_weights: bool) -> str:
    safe = [file for file in SAFE_WEIGHTS if (folder / file).is_file()]
    pickled = [file for file in PICKLED_WEIGHTS if (folder / file).is_file()]
    if safe:
        return safe[0]
    if pickled and allow_pickle_weights:
        return pickled[0]
    if pickled:
        raise InputError(
            f"model {name!r}: its weights are a pickle, {pickled[0]}; wanted {WEIGHTS_FILE}, or allow_pickle_weights "
            "if you trust whoever made it"
        )
    raise InputError(f"model {name!r}: {folder} has no {WEIGHTS_FILE}; wanted an OpenCLIP checkpoint in safetensors")


def _three(value: Any) -> tuple[Any, ...]:  # one number or three, as configs have it
    return tuple(value) if isinstance(value, list | tuple) else (value,) * 3


def _open_clip_folder() -> Path:
    """Find the package without importing it, which would import torch."""
    found = importlib.util.find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        raise ImportError("open_clip is missing; install it with: pip install open_clip_torch")
    return Path(found.submodule_search_locations[0])


def _is_architecture(name: str) -> bool:
    return (_open_clip_folder() / "model_configs" / f"{name}.json").is_file()


def _repository_of_tag(name: str) -> str:
    """Look an architecture/tag pair up in OpenCLIP's list, the one place here that has to import it."""
    from open_clip import pretrained

    architecture, _, tag = name.partition("/")
    known = pretrained.get_pretrained_cfg(architecture, tag)
    if not known:
        tags = ", ".join(pretrained.list_pretrained_tags_by_model(architecture))
        raise InputError(f"model {name!r}: {architecture} has no tag {tag!r}; it has {tags}")
    organisation, _, rest = known.get("hf_hub", "").partition("/")
    repository = rest.partition("/")[0]
    if not repository:
        raise InputError(f"model {name!r}: its weights are not on the Hugging Face hub")
    return f"{organisation}/{repository}"


def _download(name: str, repository: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # every process that decodes would import it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        where = os.environ.get("HF_ENDPOINT", "the Hugging Face hub")
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"model {name!r}: neither a folder, nor an architecture/tag of OpenCLIP, nor found on {where}: {said}"
        ) from error
