"""Which checkpoint: from a name to files on this machine, their digests, what they ask of a picture, and the space.

In: the name a user gives. Out: a `Checkpoint`. Files come from a local folder or from the Hugging Face hub through its
own client and cache; only safetensors are loaded. Knows nothing of torch: what a checkpoint is can be told from its
files, without spending seconds on imports or memory on weights.
"""

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipeline.errors import InputError

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# The tokenizer of a text tower may be any of these; picture formats and other frameworks' weights stay on the hub.
WANTED_FILES = (CONFIG_FILE, WEIGHTS_FILE, "*token*.json", "vocab*", "merges.txt", "*.model")

# open_clip.transform.PreprocessCfg and open_clip.constants, which a config overrides in part.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Fit = Literal["pad"]
Decode = Literal["exact", "scaled"]


@dataclass(frozen=True)
class PreprocessSpec:
    """How a picture becomes pixels; what changes pixels is part of the space, the two limits are not."""

    height_px: int
    width_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Fit = "pad"
    decode: Decode = "exact"
    max_image_bytes: int = 64 << 20
    max_image_pixels: int = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """An OpenCLIP model whose files lie in ``folder``."""

    name: str  # resolves to the same files again, on any machine that can reach them
    model_id: str  # what _model_id says: short, and different for different weights
    revision: str
    folder: Path
    config: dict[str, Any]  # open_clip_config.json as it stands; its values have every JSON type
    sha256: dict[str, str]  # per file

    @property
    def embed_dim(self) -> int:
        """Width of the vectors of both towers."""
        return int(self.config["model_cfg"]["embed_dim"])

    def preprocess_spec(self, fit: Fit, decode: Decode, max_image_bytes: int, max_image_pixels: int) -> PreprocessSpec:
        """Combine what the checkpoint's config says of pixels with what the user chose."""
        size = self.config["model_cfg"]["vision_cfg"].get("image_size", 224)
        height_px, width_px = size if isinstance(size, list) else (size, size)
        wanted = self.config.get("preprocess_cfg", {})
        return PreprocessSpec(
            height_px=int(height_px),
            width_px=int(width_px),
            mean=tuple(wanted.get("mean") or OPENAI_MEAN),
            std=tuple(wanted.get("std") or OPENAI_STD),
            fit=fit,
            decode=decode,
            max_image_bytes=max_image_bytes,
            max_image_pixels=max_image_pixels,
        )

    def space(self, spec: PreprocessSpec, dimensions: int | None) -> str:
        """Hash what makes vectors comparable: model config, weights, preprocessing, output dimensions."""
        parts = {
            "model_cfg": self.config["model_cfg"],
            "weights": self.sha256[WEIGHTS_FILE],
            "pixels": [spec.height_px, spec.width_px, spec.mean, spec.std, spec.fit, spec.decode],
            "dimensions": dimensions or self.embed_dim,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def resolve(name: str) -> Checkpoint:
    """Find a checkpoint's files, fetching them if need be, and digest them.

    Args:
        name: a folder, ``ViT-B-32/laion2b_s34b_b79k`` (architecture/tag of OpenCLIP's own list), ``org/name`` or
            ``hf-hub:org/name``, the last two with ``@revision`` if wanted.

    Raises:
        InputError: no such folder, name, tag, revision or file.
    """
    folder = Path(name.removeprefix("local-dir:"))
    if folder.is_dir():
        folder = folder.resolve()
        return _checkpoint(str(folder), folder.name, None, folder)
    if name.startswith(("local-dir:", ".", "/", "~")):
        raise InputError(f"model {name!r}: no such folder")
    repository, _, revision = name.removeprefix("hf-hub:").partition("@")
    if not name.startswith("hf-hub:") and _is_architecture(repository.split("/")[0]):
        repository = _repository_of_tag(repository)
    folder = _download(name, repository, revision or None)
    commit = folder.name  # the hub's cache keeps each revision in a folder named by its commit
    return _checkpoint(f"hf-hub:{repository}@{commit}", repository, commit, folder)


def _checkpoint(name: str, title: str, revision: str | None, folder: Path) -> Checkpoint:
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / file).is_file():
            raise InputError(f"model {name!r}: {folder} has no {file}; wanted an OpenCLIP checkpoint in safetensors")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        config["model_cfg"]["embed_dim"], config["model_cfg"]["vision_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"model {name!r}: {CONFIG_FILE} is not OpenCLIP's: {error!r}") from error
    sha256 = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
    revision = revision or sha256[WEIGHTS_FILE]
    return Checkpoint(name, f"{title}@{revision[:12]}", revision, folder, config, sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    repository, _, file = rest.partition("/")
    if not repository or file not in ("", WEIGHTS_FILE):
        raise InputError(f"model {name!r}: its weights are not published as safetensors")
    return f"{organisation}/{repository}"


def _download(name: str, repository: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(WANTED_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        where = os.environ.get("HF_ENDPOINT", "the Hugging Face hub")
        said = " ".join(str(error).split())[:300]
        raise InputError(
            f"model {name!r}: neither a folder, nor an architecture/tag of OpenCLIP, nor found on {where}: {said}"
        ) from error
