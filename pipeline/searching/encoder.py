"""Queries to vectors: texts and pictures encoded as a table's rows were, by the same checkpoint and preprocessing.

In: texts, encoded images, pictures of Pillow, paths. Out: `Vectors`, which know what they may be compared with. The
model is loaded when it is first needed, and once.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import ModelConfig
from pipeline.embedding.record import space_of
from pipeline.embedding.sandbox import Sandbox
from pipeline.errors import InputError
from pipeline.machine import available_cpus
from pipeline.model import EncodeSpec
from pipeline.table import TableRecord

if TYPE_CHECKING:
    from pipeline.embedding.encode import Encode

Picture = bytes | Image.Image | str | Path  # encoded, open, or a path on this machine


class Vectors(NDArray[np.float32] if TYPE_CHECKING else np.ndarray):  # type: ignore[misc]
    """float32 of shape (d,) or (n, d) and norm 1, with the name of what they may be compared with.

    A picture's vector has a ``space``: the checkpoint and its preprocessing. A text's has only a ``towers``: it may be
    compared with rows of any preprocessing by the same checkpoint, cut to the same dimensions.
    """

    space: str | None
    towers: str | None

    def __array_finalize__(self, made_of: Any) -> None:  # NumPy hands over whatever it was made of
        self.space = getattr(made_of, "space", None)
        self.towers = getattr(made_of, "towers", None)


class Encoder:
    """One checkpoint with one way of preprocessing.

    Args:
        spec: what is loaded; of another space it is refused.
        sha256: the digests of the checkpoint's files; none where none is known, and then nothing can be encoded.
    """

    def __init__(self, spec: EncodeSpec, sha256: Mapping[str, str]) -> None:
        self.spec = spec
        self.has_model = bool(sha256)
        self.towers = towers_of(sha256, spec.dimensions or 0)

    @cached_property
    def _encode(self) -> "Encode":
        from pipeline.embedding.encode import Encode  # torch takes seconds to import

        return Encode(self.spec)

    @cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox(self.spec.preprocess)

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Encode texts: (n, d).

        Raises:
            InputError: the model came without its tokenizer, or has no direction for a text.
        """
        self._check_model()
        return self._named(self._encode.encode_texts(list(texts)), [f"text {text!r}" for text in texts], None)

    def images(self, pictures: Sequence[Picture]) -> Vectors:
        """Decode, fit and encode pictures as the embed job does: (n, d).

        Raises:
            InputError: a picture cannot be read or decoded, or the model has no direction for it.
        """
        self._check_model()
        pixels, rejects = self._sandbox.pixels([encoded(picture) for picture in pictures])
        for number, reject in enumerate(rejects):
            if reject is not None:
                raise InputError(f"image {number}: {reject.reason}: {reject}")
        names = [f"image {number}" for number in range(len(pictures))]
        return self._named(self._encode.encode_images(pixels), names, self.spec.space)

    def close(self) -> None:
        """End the decoder's process, if there is one."""
        if "_sandbox" in self.__dict__:
            self.__dict__.pop("_sandbox").close()

    def _check_model(self) -> None:
        if not self.has_model:
            raise InputError(
                f"model {self.spec.model!r}: no checkpoint is known of these vectors, so that neither text nor picture "
                "can be encoded for them; ask by a vector or a row, or import them with model="
            )

    def _named(self, vectors: NDArray[np.float32], names: Sequence[str], space: str | None) -> Vectors:
        for vector, name in zip(vectors, names, strict=True):
            if not vector.any():
                raise InputError(f"{name}: the model's vector is zero or not finite")
        found: Vectors = vectors.view(Vectors)  # type: ignore[assignment]  # NumPy's stubs take it for a dtype
        found.space, found.towers = space, self.towers
        return found


def open_encoder(record: TableRecord, model: str | None = None, *, allow_pickle_weights: bool = False) -> Encoder:
    """Make the encoder of a table's queries.

    Args:
        model: where the table's model is now, if it has moved.
    """
    spec = EncodeSpec(
        model=model or record.model,
        space=record.space,
        preprocess=record.preprocess,
        dimensions=record.d,
        threads=available_cpus(),
        allow_pickle_weights=allow_pickle_weights,
    )
    return Encoder(spec, record.model_sha256)


def encoder_of(config: ModelConfig) -> Encoder:
    """Make the encoder that a config asks for.

    Raises:
        InputError: the model cannot be used as asked.
    """
    space = space_of(config)
    spec = EncodeSpec(
        model=space.checkpoint.name,
        space=space.name,
        preprocess=space.preprocess,
        precision=config.encode.precision,
        dimensions=space.d,
        threads=config.encode.threads or available_cpus(),
        allow_pickle_weights=config.allow_pickle_weights,
    )
    return Encoder(spec, space.checkpoint.sha256)


def encoded(picture: Picture) -> bytes:
    """Give the encoded bytes of a picture; one that is open already is written without loss.

    Raises:
        InputError: there is no such file, or this is no picture.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        written = io.BytesIO()
        is_float = picture.mode == "F"  # which PNG does not have
        picture.save(written, "TIFF" if is_float else "PNG")
        return written.getvalue()
    if not isinstance(picture, str | Path):
        raise InputError(f"image: wanted bytes, a picture of Pillow or a path, got {type(picture).__name__}")
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise InputError(f"image {str(picture)!r}: cannot be read: {error}") from error


def towers_of(sha256: Mapping[str, str], d: int) -> str:
    """Name a checkpoint by the digests of its files, and how many of its dimensions are kept."""
    return hashlib.sha256(json.dumps([sorted(sha256.items()), d]).encode()).hexdigest()[:12]


def check_comparable(vectors: NDArray[np.float32], record: TableRecord, table: str) -> None:
    """Check that queries may be compared with a table's rows; those that do not know where they are from, by width.

    Raises:
        InputError: they may not, naming both.
    """
    if vectors.shape[-1] != record.d:
        raise InputError(f"query: has {vectors.shape[-1]} dimensions, table {table} has {record.d}")
    space, towers = getattr(vectors, "space", None), getattr(vectors, "towers", None)
    if space is not None and space != record.space:
        raise InputError(f"query: is of space {space}, table {table} of {record.space}, by {record.model_id}")
    if space is None and towers is not None and towers != towers_of(record.model_sha256, record.d):
        raise InputError(
            f"query: its text was encoded by another model than table {table}, which has {record.model_id}"
        )
