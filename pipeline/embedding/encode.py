"""Pixels or text in, L2-normalised float32 vectors out: one OpenCLIP model on one device.

What an image passes here is what the checkpoint's reference does: scale to [0, 1], normalise, the model's own image
tower. Architecture, sizes and tokenizer are the checkpoint's; there is no code for any one model. Knows nothing of Ray.
"""

import logging
import threading
import time
import warnings
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

from pipeline import model, schema
from pipeline.embedding.batching import BatchSizes
from pipeline.embedding.shortcuts import encode_text, take_shortcuts
from pipeline.errors import InputError
from pipeline.model import Checkpoint, EncodeSpec
from pipeline.schema import Reason

# On 2 cores ViT-B-32 does 16 to 128 at a time equally well (jobs/BENCHMARKS.md), and larger models need no more; a GPU
# gains until it is full.
CPU_BATCH_SIZES = (16, 32, 64)
GPU_BATCH_SIZES = (64, 128, 256, 512, 1024)

# Pixels come from Ray's store, which nobody may write to, and nobody does.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


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
        self.d = spec.dimensions or checkpoint.embed_dim
        self.model = _load(checkpoint, self.precision, self.device)
        take_shortcuts(self.model.visual)
        self.feeder = Feeder(self.device) if self.device.type == "cuda" else None
        self.batch_sizes = BatchSizes(*self._candidates())
        self.lock = threading.Lock()
        self.description = f"{_name(self.device)} {self.precision} " + " ".join(
            f"{package} {version(package)}" for package in ("torch", "open_clip_torch", "timm")
        )
        # (x / 255 - mean) / std with one pass less over the pixels
        self.mean_level = torch.tensor(spec.preprocess.mean, device=self.device).view(3, 1, 1) * 255
        self.std_level = torch.tensor(spec.preprocess.std, device=self.device).view(3, 1, 1) * 255

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Replace pixels by vectors; rows with a reason, and those the model has no direction for, get zeros.

        Rows whose vector is known keep it, and what it was computed with.
        """
        shape = (batch.num_rows, 3, self.spec.preprocess.height_px, self.spec.preprocess.width_px)
        pixels = batch[schema.PIXELS].combine_chunks().flatten().to_numpy().reshape(shape)  # a view, not a copy
        reasons: list[str | None] = batch[schema.REASON].to_pylist()
        errors: list[str | None] = batch[schema.ERROR].to_pylist()
        known: list[bytes | None] = batch[schema.KNOWN].to_pylist()
        good = np.array([i for i, reason in enumerate(reasons) if reason is None and known[i] is None], np.int64)
        if len(good) == len(pixels):
            vectors = self.encode_images(pixels)
        else:
            vectors = np.zeros((len(pixels), self.d), np.float32)
            vectors[good] = self.encode_images(pixels[good])
            for i, vector in enumerate(known):
                if vector is not None:
                    vectors[i] = np.frombuffer(vector, np.float32)
        for i in good[~vectors[good].any(axis=1)]:
            reasons[i] = Reason.ZERO_VECTOR.value
            row = batch[schema.ROW][int(i)].as_py()
            errors[i] = schema.error_text(Reason.ZERO_VECTOR, row, "the model's vector is zero or not finite")
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.d)
        encoder = pc.fill_null(batch[schema.ENCODER], self.description)
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

    def encode_images(self, pixels: NDArray[np.uint8], *, normalised: bool = True) -> NDArray[np.float32]:
        """Encode pixels (n, 3, h, w) to vectors (n, d) of norm 1; zeros where the model's output is not usable.

        Callers in several threads take turns: one call uses all of the device.

        Args:
            normalised: no: of whatever norm the model gives them.

        Raises:
            torch.OutOfMemoryError, RuntimeError: there is no memory for a single image.
        """
        with self.lock, torch.inference_mode():
            return self._vectors(self._encode_in_batches(pixels), normalised)

    def _encode_in_batches(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        start = 0
        while start < len(pixels):
            size = self.batch_sizes.next(len(pixels) - start)
            began = time.perf_counter()
            output = self._image_batch(pixels[start : start + size])
            if output is None:
                self.batch_sizes.failed(size)
                continue
            if self.batch_sizes.is_trying and self.feeder is not None:
                torch.cuda.synchronize()
            self.batch_sizes.took(size, time.perf_counter() - began)
            outputs.append(output)
            start += size
        return torch.cat(outputs) if outputs else torch.empty((0, self.d))

    def encode_texts(self, texts: list[str], *, normalised: bool = True) -> NDArray[np.float32]:
        """Encode texts to vectors (n, d) likewise, by the checkpoint's own tokenizer and text tower."""
        if not texts:
            return np.empty((0, self.d), np.float32)
        with torch.inference_mode():
            tokens = self.tokenizer(texts).to(self.device)
            return self._vectors(encode_text(self.model, tokens), normalised)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Count the tokens of texts, as far as the text tower reads them; what fills up the rest does not count."""
        *tokens, empty = self.tokenizer([*texts, ""])
        return [int((each != empty[-1]).sum()) for each in tokens]

    def _image_batch(self, pixels: NDArray[np.uint8]) -> torch.Tensor | None:
        """Start encoding a batch, to the model's output; None if memory ran out. A GPU may still work on it."""
        try:
            batch = torch.from_numpy(pixels) if self.feeder is None else self.feeder.put(pixels)
            levels = batch.float()  # (n, 3, h, w) float32, on device
            levels.sub_(self.mean_level).div_(self.std_level)
            output: torch.Tensor = self.model.encode_image(levels.to(self.dtype))
            return output
        except RuntimeError as error:
            if len(pixels) == 1 or not _is_out_of_memory(error):
                raise
        if self.feeder is not None:  # out here, where the exception no longer holds what it was raised over
            torch.cuda.empty_cache()
        return None

    def _vectors(self, output: torch.Tensor, normalised: bool) -> NDArray[np.float32]:
        """Keep the first d coordinates, in float32 whatever the model computed in, and give them norm 1 if wanted."""
        kept = output.float()[:, : self.d]
        if normalised:
            kept = torch.nn.functional.normalize(kept, dim=1)
        usable = torch.where(kept.isfinite().all(dim=1, keepdim=True), kept, 0.0)
        return np.asarray(usable.cpu().numpy(), np.float32)

    def _candidates(self) -> tuple[tuple[int, ...], str]:
        """Give the batch sizes to choose from, and what the choice holds for."""
        if self.spec.batch_size is not None:
            sizes: tuple[int, ...] = (self.spec.batch_size,)
        else:
            sizes = CPU_BATCH_SIZES if self.feeder is None else GPU_BATCH_SIZES
        weights = self.checkpoint.sha256[self.checkpoint.weights][:12]
        layout = f"{torch.get_num_threads()} threads" if self.feeder is None else "1 stream"
        return sizes, f"{weights} {_name(self.device)} {self.precision} {layout} torch {version('torch')}"


class Feeder:
    """Brings pixels to a GPU on a stream of their own, from two pinned buffers in turn.

    The next batch of a call travels while the one before it is computed; between calls the GPU waits for the first.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.buffers: list[torch.Tensor | None] = [None, None]
        self.copied = [torch.cuda.Event(), torch.cuda.Event()]  # type: ignore[no-untyped-call]
        self.turn = 0

    def put(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Give pixels (n, 3, h, w) on the device, there before anything that the current stream does next."""
        self.turn = 1 - self.turn
        self.copied[self.turn].synchronize()  # what was last in this buffer has left it
        source = torch.from_numpy(pixels)
        buffer = self.buffers[self.turn]
        if buffer is None or buffer.numel() < source.numel():
            buffer = self.buffers[self.turn] = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=True)
        pinned = buffer[: source.numel()].view(source.shape)
        pinned.copy_(source)
        with torch.cuda.stream(self.stream):
            arrived = pinned.to(self.device, non_blocking=True)
            self.copied[self.turn].record(self.stream)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        arrived.record_stream(current)  # so that its memory is not given away before
        return arrived


# What allocators say that have no error class of their own: of the CPU, of cuBLAS, of pinned memory.
OUT_OF_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")

# What fills tensors with random numbers: methods, and functions of torch.nn.init, which call them out of our sight.
RANDOM = (
    *("normal_", "uniform_", "trunc_normal_", "orthogonal_"),
    *("xavier_normal_", "xavier_uniform_", "kaiming_normal_", "kaiming_uniform_"),
)


class _NoInitialisation(TorchFunctionMode):
    """Leaves out the random numbers that a new model starts with: all of them are about to be replaced."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _load(checkpoint: Checkpoint, precision: str, device: torch.device) -> Any:  # OpenCLIP's models have no common type
    """Build the model as its config says, and load the very file that was digested, strictly."""
    logging.disable(logging.WARNING)  # of weights that are random: they are about to be replaced
    try:
        with _NoInitialisation():
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


def _is_out_of_memory(error: RuntimeError) -> bool:
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(sign in said for sign in OUT_OF_MEMORY)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _is_fast_in_bf16(device: torch.device) -> bool:
    """GPUs from Ampere on; CPUs with bf16 instructions, where pure bf16 is four times float32 (facts/measured.md)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
