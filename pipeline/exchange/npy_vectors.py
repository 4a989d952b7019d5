"""Vectors in NumPy files beside the Parquet that describes them, as clip-retrieval lays them out.

In: ``metadata/metadata_0.parquet`` and so on, as shards and units. Out: rows with their vectors, of which no others are
read, from ``img_emb/img_emb_0.npy`` beside it, or ``text_emb/text_emb_0.npy``. Arrays of objects, which are pickles,
are refused.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.config import ImportConfig
from pipeline.embedding.plan import Shard
from pipeline.errors import InputError
from pipeline.filesystem import filesystem_of, fingerprint_of, open_parquet
from pipeline.table import Unit

READ_ROWS = 2048
MARK = " npy "  # in a shard's state, before the state of its vectors
FLOATS = ("f2", "f4", "f8")


@dataclass(frozen=True)
class _Array:
    """What the header of a NumPy file says."""

    dtype: np.dtype[np.floating]
    rows: int
    d: int
    start: int  # of the numbers in the file, in bytes


def with_state(shard: Shard, config: ImportConfig) -> Shard:
    """Let a shard be another one when its vectors' file is rewritten.

    Raises:
        InputError: it has no such file.
    """
    npy = _npy_of(shard.url, config)
    try:
        return replace(shard, state=f"{shard.state.partition(MARK)[0]}{MARK}{fingerprint_of(npy)}")
    except FileNotFoundError as error:
        raise InputError(f"{npy}: is missing; it should have the vectors of {shard.url}") from error


def check_widths(shard: Shard, config: ImportConfig) -> None:
    """Check that a shard has a file of vectors, as many as it has rows, and of `dimensions` numbers.

    Raises:
        InputError: it has not.
    """
    npy, wanted = _npy_of(shard.url, config), (shard.rows, config.dimensions)
    with _opened(npy) as (_, array):
        if (array.rows, array.d) != wanted:
            raise InputError(f"{npy}: is of shape {(array.rows, array.d)}; wanted {wanted}")


def read_rows(unit: Unit, columns: list[str], config: ImportConfig) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
    """Yield a unit's rows with their vectors, some at a time."""
    groups = list(range(unit.first_group, unit.first_group + unit.groups))
    npy = _npy_of(unit.shard, config)
    with open_parquet(unit.shard) as file, _opened(npy) as (numbers, array):
        row_bytes = array.d * array.dtype.itemsize
        numbers.seek(array.start + unit.first_row * row_bytes)
        for batch in file.iter_batches(READ_ROWS, row_groups=groups, columns=columns):
            found = np.frombuffer(numbers.read(batch.num_rows * row_bytes), array.dtype)
            if found.size != batch.num_rows * array.d:
                raise InputError(f"{npy}: is cut short")
            found = found.astype(array.dtype.newbyteorder("="))
            yield batch, pa.FixedSizeListArray.from_arrays(pa.array(found), array.d)


def _npy_of(url: str, config: ImportConfig) -> str:
    """Name the file of vectors that belongs to a file of metadata."""
    found = re.fullmatch(r"(.*/|)metadata/metadata_([^/]*)\.parquet", url)
    if found is None:
        raise InputError(f"{url}: wanted metadata/metadata_<number>.parquet, as clip-retrieval has it")
    kind = "text_emb" if config.texts else "img_emb"
    return f"{found[1]}{kind}/{kind}_{found[2]}.npy"


@contextmanager
def _opened(npy: str) -> Iterator[tuple[BinaryIO, _Array]]:
    """Open a file of vectors, and read its header."""
    filesystem, path = filesystem_of(npy)
    with filesystem.open(path, "rb") as file:
        yield file, _header(file, npy)


def _header(file: BinaryIO, where: str) -> _Array:
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
    except ValueError as error:
        raise InputError(f"{where}: is no NumPy file: {error}") from error
    if len(shape) != 2 or is_fortran or dtype.str[1:] not in FLOATS:
        raise InputError(f"{where}: is {dtype} of shape {shape}; wanted rows of float16, float32 or float64")
    return _Array(dtype, *shape, file.tell())
