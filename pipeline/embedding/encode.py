"""Pixels or text in, L2-normalised float32 vectors out: one OpenCLIP model on one device.

What an image passes here is what the checkpoint's reference does: scale to [0, 1], normalise, the model's own image
tower. Architecture, sizes and tokenizer are the checkpoint's; there is no code for any one model. Knows nothing of Ray.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline import model, schema
from pipeline.errors import InputError
from pipeline.model import Checkpoint, PreprocessSpec
from pipeline.schema import Reason

# On 2 cores ViT-B-32 does 16 to 128 at a time equally well (jobs/BENCHMARKS.md); a GPU wants more in flight.
CPU_BATCH_SIZE = 64
GPU_BATCH_SIZE = 256


@dataclass(frozen=True)
class EncodeSpec:
    """Which weights, in which precision, and what of their output is kept."""

    model: str  # as model.resolve takes it, on whatever machine the encoder runs
    space: str  # what is loaded must be of it
    preprocess: PreprocessSpec
    precision: str | None = None
    dimensions: int | None = None
    batch_size: int | None = None
    threads: int | None = None  # CPU threads; None leaves torch's choice
    allow_pickle_weights: bool = False


class Encode:
    """The step: a batch with a pixel column becomes a batch with a vector column.

    Raises:
        InputError: on construction, if weights or config are not those of the space that was planned.
    """

    def __init__(self, spec: EncodeSpec) -> None:
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        checkpoint = model.resolve(spec.model, allow_pickle_weights=spec.allow_pickle_weights)
        found = checkpoint.space(spec.preprocess, spec.dimensions)
        if found != spec.space:
            raise InputError(f"model {spec.model}: is of space {found}, wanted {spec.space}")
        self.spec = spec
        self.checkpoint = checkpoint
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = spec.precision or ("bf16" if _is_fast_in_bf16(self.device) else "fp32")
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
        self.batch_size = spec.batch_size or (GPU_BATCH_SIZE if self.device.type == "cuda" else CPU_BATCH_SIZE)
        self.d = spec.dimensions or checkpoint.embed_dim
        self.model = _load(checkpoint, self.precision, self.device)
        self.description = f"{_name(self.device)} {self.precision} " + " ".join(
            f"{package} {version(package)}" for package in ("torch", "open_clip_torch", "timm")
        )
        # (x / 255 - mean) / std with one pass less over the pixels
        self.mean_level = torch.tensor(spec.preprocess.mean, device=self.device).view(3, 1, 1) * 255
        self.std_level = torch.tensor(spec.preprocess.std, device=self.device).view(3, 1, 1) * 255

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Replace pixels by vectors; rows with a reason, and those the model has no direction for, get zeros."""
        shape = (batch.num_rows, 3, self.spec.preprocess.height_px, self.spec.preprocess.width_px)
        pixels = batch[schema.PIXELS].combine_chunks().flatten().to_numpy().reshape(shape)
        reasons: list[str | None] = batch[schema.REASON].to_pylist()
        errors: list[str | None] = batch[schema.ERROR].to_pylist()
        good = np.array([i for i, reason in enumerate(reasons) if reason is None], np.int64)
        vectors = np.zeros((batch.num_rows, self.d), np.float32)
        vectors[good] = self.encode_images(pixels[good])
        for i in good[~vectors[good].any(axis=1)]:
            reasons[i] = Reason.ZERO_VECTOR.value
            row = batch[schema.ROW][int(i)].as_py()
            errors[i] = schema.error_text(Reason.ZERO_VECTOR, row, "the model's vector is zero or not finite")
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.d)
        encoder = pa.repeat(self.description, batch.num_rows)
        new = {schema.VECTOR: values, schema.ENCODER: encoder, **schema.outcome_columns(reasons, errors)}
        return schema.replace_columns(batch, [schema.PIXELS], new)

    @cached_property
    def tokenizer(self) -> Any:  # of OpenCLIP: texts in, token ids (n, context_length) out
        """The checkpoint's own tokenizer, loaded when a text first needs it.

        Raises:
            InputError: the checkpoint came without it.
        """
        location, text = f"local-dir:{self.checkpoint.folder}", self.checkpoint.config["model_cfg"].get("text_cfg", {})
        if not text.get("hf_tokenizer_name"):
            return open_clip.get_tokenizer(location)
        if not self.checkpoint.tokenizer_sha256:
            raise InputError(
                f"model {self.checkpoint.name}: {self.checkpoint.folder} has no tokenizer.json or the like; "
                f"its config wants that of {text['hf_tokenizer_name']}"
            )
        return open_clip.get_tokenizer(location, trust_remote_code=False)  # whatever the config says

    def encode_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode pixels (n, 3, h, w) to vectors (n, d) of norm 1; zeros where the model's output is not usable."""
        vectors = np.empty((len(pixels), self.d), np.float32)
        for start in range(0, len(pixels), self.batch_size):
            stop = start + self.batch_size
            vectors[start:stop] = self._image_batch(torch.from_numpy(pixels[start:stop]))
        return vectors

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """Encode texts to vectors (n, d) of norm 1 by the checkpoint's own tokenizer and text tower."""
        with torch.inference_mode():
            tokens = self.tokenizer(texts).to(self.device)
            return self._normalised(self.model.encode_text(tokens))

    @torch.inference_mode()
    def _image_batch(self, pixels: torch.Tensor) -> NDArray[np.float32]:
        levels = pixels.to(self.device, non_blocking=True).float()  # (n, 3, h, w) float32, on device
        levels.sub_(self.mean_level).div_(self.std_level)
        return self._normalised(self.model.encode_image(levels.to(self.dtype)))

    def _normalised(self, output: torch.Tensor) -> NDArray[np.float32]:
        """Keep the first d coordinates and give them norm 1, in float32 whatever the model computed in."""
        kept = torch.nn.functional.normalize(output.float()[:, : self.d], dim=1)
        kept = torch.where(kept.isfinite().all(dim=1, keepdim=True), kept, 0.0)
        return np.asarray(kept.cpu().numpy(), np.float32)


def _load(checkpoint: Checkpoint, precision: str, device: torch.device) -> Any:  # OpenCLIP's models have no common type
    """Build the model as its config says, and load the very file that was digested, strictly."""
    logging.disable(logging.WARNING)  # of weights that are random: they are about to be replaced
    try:
        built = open_clip.create_model(
            f"local-dir:{checkpoint.folder}",
            precision=precision if precision == "fp32" else f"pure_{precision}",
            device=device,
            load_weights=False,
            pretrained_text=False,
            **_pinned_text(checkpoint),
        )
    finally:
        logging.disable(logging.NOTSET)
    for part in built.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.float()  # statistics in 8 bits cost RN50x4 half of its likeness to float32 (jobs/BENCHMARKS.md)
    open_clip.load_checkpoint(built, str(checkpoint.folder / checkpoint.weights), strict=True)
    return built.eval()


def _pinned_text(checkpoint: Checkpoint) -> dict[str, Any]:  # arguments of OpenCLIP
    """Point a text tower of transformers at the config that was digested."""
    if checkpoint.text_folder is None:
        return {}
    pinned = {"hf_model_name": str(checkpoint.text_folder), "hf_model_pretrained": False}
    return {"text_cfg": {**checkpoint.config["model_cfg"]["text_cfg"], **pinned}}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _is_fast_in_bf16(device: torch.device) -> bool:
    """GPUs from Ampere on; CPUs with bf16 instructions, where pure bf16 is four times float32 (facts/measured.md)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
