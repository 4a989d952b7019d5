"""Which rows have a key that an earlier row has: 64-bit hashes find suspects, the keys themselves convict them.

In: a source's config, shards, what earlier runs committed of them, and files of the table that have the rows of others.
Out: row numbers of each shard, or an error that names both places. Keys are equal if their texts are. Takes some 25
bytes a row, and for every suspect its key as Arrow and some 50 bytes. Knows nothing of images.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import SourceConfig
from pipeline.embedding.plan import Shard
from pipeline.errors import InputError
from pipeline.filesystem import STORE_ERRORS, open_parquet
from pipeline.stopping import alive
from pipeline.table import Unit

READ_THREADS = 32  # keys are a small part of shards that are far away: latency, not bandwidth
BATCH_ROWS = 1 << 16  # keys that are Python objects at a time, in each thread
PART_ROWS = 1 << 24  # rows compared at a time: some 50 bytes each, and the dictionary of their keys


@dataclass(frozen=True)
class KeyFile:
    """A Parquet file with a key for every row: a shard, or a file of the table."""

    url: str
    rows: int
    column: str
    shard: str | None = None  # that the rows of a file of the table are of

    def __str__(self) -> str:
        return self.url if self.shard is None else f"{self.url}, as the table has {self.shard}"


@dataclass(frozen=True)
class Committed:
    """What earlier runs committed of a source's shards, and beside them."""

    units: tuple[Unit, ...] = ()
    rejected: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)  # by shard, of these: for their key
    reopened: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)  # by shard, of these: to be tried again
    elsewhere: tuple[KeyFile, ...] = ()  # files of the table, for rows of shards that are not given


def duplicate_rows(
    source: SourceConfig, shards: tuple[Shard, ...], committed: Committed
) -> dict[str, NDArray[np.int64]]:
    """Find the rows whose key an earlier row has: for every shard that has any, their ascending row numbers.

    Rows that are committed come before all others, then the order is that of the shards and of their rows. Rows that
    were rejected for their key count for nothing, since the row that they gave way to may not have been committed.

    Raises:
        InputError: a null key, a shard that cannot be read or is not as it was listed, or two rows of one key where
            the source takes none.
    """
    if source.key_column is None:
        return {}
    files = (*(KeyFile(shard.url, shard.rows, source.key_column) for shard in shards), *committed.elsewhere)
    hashes = _hash_files(source, files)
    suspects, is_pending = _suspects(files, hashes, committed)
    hashes = hashes[suspects]
    keys = _read_suspects(source, files, suspects)
    repeats = _repeats(keys, hashes, is_pending)
    if repeats.size and source.duplicate_keys == "error":
        again = int(repeats[0])
        before = _first_equal(keys, is_pending, again)
        raise InputError(
            f"source {source.name}: key_column {source.key_column!r}: {keys[again].as_py()!r} is at "
            f"{_place(files, suspects[before])} and again at {_place(files, suspects[again])}; {repeats.size} rows "
            'in all have the key of an earlier row; wanted unique keys, or source.duplicate_keys = "first" to reject '
            "all but the first"
        )
    return {shard.url: rows for shard, rows in _by_file(files, suspects[repeats])}


def _hash_files(source: SourceConfig, files: tuple[KeyFile, ...]) -> NDArray[np.uint64]:
    """Hash the keys of all rows."""
    starts = _starts(files)
    hashes = np.empty(starts[-1], np.uint64)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        list(pool.map(partial(_hash_file, source), files, np.split(hashes, starts[1:-1])))
    return hashes


def _hash_file(source: SourceConfig, file: KeyFile, hashes: NDArray[np.uint64]) -> None:
    """Fill the hashes of one shard's rows."""
    nulls = [np.empty(0, np.int64)]
    for first_row, keys in _read_keys(source, file):
        hashes[first_row : first_row + len(keys)] = _hash(keys)
        if keys.null_count:
            nulls.append(first_row + np.flatnonzero(keys.is_null()))
    rows = np.concatenate(nulls)
    if rows.size:
        raise InputError(
            f"source {source.name}: key_column {file.column!r}: {rows.size} nulls in {file.url}, the first at "
            f"row {rows[0]}; wanted none"
        )


def _read_keys(source: SourceConfig, file: KeyFile) -> Iterator[tuple[int, pa.Array]]:
    """Yield batches of keys as text, each with the row number of its first."""
    row = 0
    try:
        with open_parquet(file.url) as opened:
            if opened.metadata.num_rows != file.rows:
                raise InputError(
                    f"source {source.name}: {file.url} has {opened.metadata.num_rows} rows; wanted {file.rows}, "
                    "as when it was listed"
                )
            for batch in opened.iter_batches(BATCH_ROWS, columns=[file.column]):
                alive()
                keys = batch.column(0).cast(pa.string())
                keys.validate(full=True)  # Parquet's text may be any bytes
                yield row, keys
                row += len(keys)
    except (pa.ArrowException, *STORE_ERRORS) as error:
        raise InputError(
            f"source {source.name}: key_column {file.column!r} of {file.url} cannot be read as text: {error}"
        ) from error


def _hash(keys: pa.Array) -> NDArray[np.uint64]:
    # As bytes: 0.08 s for 10^6 keys of 18 letters, where pandas takes 0.26 s for str (2026-11, one core of an EPYC).
    texts = keys.cast(pa.binary()).to_numpy(zero_copy_only=False)
    return np.asarray(pd.util.hash_array(texts, categorize=False), np.uint64)


def _suspects(
    files: tuple[KeyFile, ...],
    hashes: NDArray[np.uint64],
    committed: Committed,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give the positions whose hash another has too, ascending, and whether their rows are still to be embedded."""
    is_suspect, is_pending = _shared(hashes), np.ones(hashes.size, np.bool_)
    start = dict(zip((file.url for file in files), _starts(files), strict=False))
    for unit in committed.units:
        first = start[unit.shard] + unit.first_row
        is_pending[first : first + unit.rows] = False
    for file in committed.elsewhere:
        is_pending[start[file.url] : start[file.url] + file.rows] = False
    for url, rows in committed.rejected.items():
        is_suspect[start[url] + rows] = False
    for url, rows in committed.reopened.items():
        is_pending[start[url] + rows] = True
    suspects = np.flatnonzero(is_suspect)
    return suspects, is_pending[suspects]


def _shared(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell for each hash whether there is another like it."""
    shared = np.zeros(hashes.size, np.bool_)
    for positions in _parts(hashes):
        shared[positions] = pd.Index(hashes[positions]).duplicated(keep=False)
    return shared


def _parts(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield ascending positions in parts of about PART_ROWS at most; equal hashes are in one part."""
    parts = 1 << (hashes.size // PART_ROWS).bit_length()
    for part in range(parts):
        yield np.flatnonzero(hashes & np.uint64(parts - 1) == part)


def _read_suspects(source: SourceConfig, files: tuple[KeyFile, ...], suspects: NDArray[np.int64]) -> pa.ChunkedArray:
    """Read the keys at these positions, in their order."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        read = pool.map(lambda part: _read_rows(source, *part), _by_file(files, suspects))
        return pa.chunked_array([chunk for chunks in read for chunk in chunks], pa.string())


def _read_rows(source: SourceConfig, file: KeyFile, rows: NDArray[np.int64]) -> list[pa.Array]:
    """Read the keys of these rows of a shard."""
    chunks = []
    for first_row, keys in _read_keys(source, file):
        first, end = np.searchsorted(rows, [first_row, first_row + len(keys)])
        chunks.append(keys.take(pa.array(rows[first:end] - first_row)))
    return chunks


def _repeats(keys: pa.ChunkedArray, hashes: NDArray[np.uint64], is_pending: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Give, ascending, the pending suspects whose key a committed one has, or one that is further to the front."""
    repeats = [np.empty(0, np.int64)]
    for mine in _parts(hashes):
        runs = mine[~is_pending[mine]], mine[is_pending[mine]]
        codes = _codes(keys, runs)
        is_known = codes[1:] <= np.maximum.accumulate(codes)[:-1]
        again = np.concatenate(runs)[1:][is_known]
        repeats.append(again[is_pending[again]])
    return np.sort(np.concatenate(repeats))


def _codes(keys: pa.ChunkedArray, runs: Iterable[NDArray[np.int64]]) -> NDArray[np.int32]:
    """Number the keys of some suspects, run after run, so that a new key has a number above all before it."""
    chunks = []
    for run in runs:
        chosen = np.zeros(len(keys), np.bool_)
        chosen[run] = True
        chunks += keys.filter(pa.array(chosen)).chunks  # take would first copy all chunks into one
    texts = pa.chunked_array(chunks, pa.string()).cast(pa.large_string())  # their dictionary may exceed 2 GiB
    return np.asarray(texts.dictionary_encode().combine_chunks().indices, np.int32)


def _first_equal(keys: pa.ChunkedArray, is_pending: NDArray[np.bool_], number: int) -> int:
    """Give the first suspect with the same key, which is a committed one if there is any."""
    same = np.flatnonzero(pc.equal(keys, keys[number]))
    return int(same[np.argmin(is_pending[same])])


def _place(files: tuple[KeyFile, ...], position: np.int64) -> str:
    ((file, rows),) = _by_file(files, position.reshape(1))
    return f"row {rows[0]} of {file}"


def _by_file(files: tuple[KeyFile, ...], positions: NDArray[np.int64]) -> Iterator[tuple[KeyFile, NDArray[np.int64]]]:
    """Turn ascending positions into row numbers of the shards that have any of them."""
    starts = _starts(files)
    split = np.split(positions, np.searchsorted(positions, starts[1:-1]))
    for file, start, mine in zip(files, starts, split, strict=False):  # one start more than files
        if mine.size:
            yield file, mine - start


def _starts(files: tuple[KeyFile, ...]) -> NDArray[np.int64]:
    """Give the position of every shard's first row, that is its place among the rows of all shards, and the end."""
    return np.cumsum([0, *(file.rows for file in files)])
