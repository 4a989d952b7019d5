"""Texts in, vectors out, by a table's own text tower, in a Ray task: whoever asks need not import torch."""

from collections.abc import Sequence

import numpy as np
import ray
from numpy.typing import NDArray

from pipeline import compute
from pipeline.machine import available_cpus
from pipeline.model import EncodeSpec
from pipeline.table import TableRecord


def encode_texts(
    record: TableRecord, texts: Sequence[str], model: str | None = None, *, allow_pickle_weights: bool = False
) -> NDArray[np.float32]:
    """Encode texts to vectors (n, d) of norm 1, in the space of a table.

    Args:
        model: where the table's model is now, if it has moved.

    Raises:
        InputError: the model cannot be loaded, is of another space, or came without its tokenizer.
    """
    compute.start_ray()
    spec = EncodeSpec(
        model=model or record.model,
        space=record.space,
        preprocess=record.preprocess,
        precision=record.precision,
        dimensions=record.d,
        threads=available_cpus(),
        allow_pickle_weights=allow_pickle_weights,
    )
    vectors: NDArray[np.float32] = compute.get(ray.remote(_encode).options(num_cpus=1).remote(spec, list(texts)))
    return vectors


def _encode(spec: EncodeSpec, texts: list[str]) -> NDArray[np.float32]:
    from pipeline.embedding.encode import Encode

    return Encode(spec).encode_texts(texts)
