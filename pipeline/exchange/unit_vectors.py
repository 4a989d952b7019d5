"""Lists of numbers of any type and norm in; out, float32 vectors of norm 1, and why some rows have none.

Knows neither files nor tables.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.schema import Reason

Rejected = dict[int, tuple[Reason, str]]  # by place: the reason, and what to say of it


def unit_vectors(column: pa.Array, d: int) -> tuple[NDArray[np.float32], Rejected]:
    """Give vectors (n, d) of norm 1, and zeros where a list is null, or has no direction.

    Args:
        column: lists of numbers, of fixed size or not.

    Raises:
        InputError: a list has not d numbers.
    """
    places = np.flatnonzero(column.is_valid())
    found = np.zeros((len(column), d), np.float32)
    rejected: Rejected = {
        int(place): (Reason.NULL, "Null or missing vector") for place in np.flatnonzero(column.is_null())
    }
    if len(places):
        raw = _matrix(column.filter(column.is_valid()), d)
        norms = _norms(raw)
        bad = ~np.isfinite(norms) | (norms == 0)
        norms[bad], raw[bad] = 1.0, 0.0
        found[places] = raw / norms[:, None]
        for place in places[bad]:
            rejected[int(place)] = (Reason.ZERO_VECTOR, "The vector is zero or not finite")
    return found, rejected


def _matrix(lists: pa.Array, d: int) -> NDArray[np.float64]:
    """Give lists without nulls among them as (n, d); what is null in a list is no number."""
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if (wrong := np.flatnonzero(lengths != d)).size:
        raise InputError(f"a vector has {lengths[wrong[0]]} numbers, wanted {d}")
    return np.array(lists.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64).reshape(-1, d)


def _norms(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give norms (n,), of numbers too large or small to be squared too; nan where one is not finite."""
    largest = np.abs(vectors).max(axis=1)
    scale = np.where(np.isfinite(largest) & (largest > 0), largest, 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(vectors / scale[:, None], axis=1) * scale
    return np.where(np.isfinite(largest), norms, np.nan)
