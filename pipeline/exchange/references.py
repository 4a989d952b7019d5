"""What the shards of a manifest are to be: which there are, of what state, and how each one's rows are made.

In: a `ManifestConfig`, and what an earlier manifest had. Out: `ReferenceShard`s, whose tables are made when they are
called for. Writes nothing.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import pyarrow as pa

from pipeline import schema
from pipeline.config import ManifestConfig
from pipeline.embedding.byte_range import reference
from pipeline.errors import InputError
from pipeline.exchange.listing import PICTURES, ListedFile, folder_of, list_kinds
from pipeline.exchange.tars import TarRow, tar_rows
from pipeline.filesystem import filesystem_of, is_local

KEY, IMAGE, BYTES, MODIFIED, LABEL = "key", "image", "bytes", "mtime", "label"  # of a folder's pictures
CAPTION, TAR = "caption", "tar"  # of a tar's, beside the first three
OURS = frozenset({KEY, IMAGE, BYTES, CAPTION, TAR, *schema.RESERVED})  # no field of .json becomes a column of that name
SHARD_ROWS = 8192  # of a folder: all are read again when one of them changes; a tar is one shard


@dataclass(frozen=True)
class ReferenceShard:
    """One Parquet file of references."""

    file: str  # its name
    of: str  # the tar, or the folder
    state: str  # of the tar, or of the files in the shard
    table: Callable[[], pa.Table]


def folder_shards(config: ManifestConfig, known: Mapping[str, Sequence[str]]) -> list[ReferenceShard]:
    """Give the shards of a folder of pictures.

    A picture stays in the shard that it came into, whatever comes and goes beside it; new ones have shards of their
    own. A shard whose pictures are all gone stays, without rows: what is gone from it is then gone from tables too.

    Args:
        known: the keys in each shard of an earlier manifest.

    Raises:
        InputError: the folder cannot be listed, or has no pictures.
    """
    files = {file.key: file for file in list_kinds(config.path, PICTURES)}
    held = {name: [files.pop(key) for key in keys if key in files] for name, keys in known.items()}
    new, free = list(files.values()), (name for name in map("{:06d}.parquet".format, count()) if name not in known)
    starts = range(0, len(new), SHARD_ROWS)
    held |= {
        name: new[start : start + SHARD_ROWS] for start, name in zip(starts, islice(free, len(starts)), strict=True)
    }
    return [ReferenceShard(name, config.path, _state(some), partial(_files_table, some)) for name, some in held.items()]


def tar_shards(config: ManifestConfig, fields: Sequence[str] | None) -> tuple[list[ReferenceShard], tuple[str, ...]]:
    """Give the shards of webdataset tars, one for each, and the fields of .json that are their columns.

    Args:
        fields: of an earlier manifest; None: there is none. All shards have the same columns, so that the first tar's
            count where none are named.

    Raises:
        InputError: there are no tars, or none can be read.
    """
    tars = list_kinds(config.path, ("tar",))
    chosen = config.json_fields if config.json_fields is not None else fields
    names = tuple(chosen) if chosen is not None else _first_fields(tars, config)
    if taken := OURS & set(names):
        raise InputError(f"json_fields: {min(taken)!r} is a column of its own; it has what .json says of it")
    shards = [
        ReferenceShard(
            _file(tar.url), tar.url, f"{tar.fingerprint} {json.dumps(names)}", partial(_tar_table, tar, names)
        )
        for tar in tars
    ]
    return shards, names


def fields_in(columns: Sequence[str]) -> tuple[str, ...]:
    """Name the fields of .json among the columns of a tar's shard."""
    return tuple(name for name in columns if name not in OURS)


def roots_of(config: ManifestConfig) -> tuple[str, ...]:
    """Give the folder or URL prefix that all references lie below."""
    filesystem, path = filesystem_of(config.path)
    above = folder_of(path)
    if above == path and path.endswith(".tar"):
        above = path.rpartition("/")[0]
    return (above if is_local(filesystem) else filesystem.unstrip_protocol(above),)


def _first_fields(tars: list[ListedFile], config: ManifestConfig) -> tuple[str, ...]:
    """Name the fields that the first tar has, of those that can be read, in the order they come."""
    first: InputError | None = None
    for tar in tars:
        try:
            names = dict.fromkeys(name for row in tar_rows(tar.url) for name in row.fields)
            return fields_in([name for name in names if name])
        except InputError as error:
            if config.bad_shards == "error":
                raise
            first = first or error
    raise InputError(f"source {config.name}: none of {len(tars)} tars can be read: {first}")


def _files_table(files: Sequence[ListedFile]) -> pa.Table:
    return pa.table(
        {
            KEY: pa.array([file.key for file in files], pa.string()),
            IMAGE: pa.array([file.url for file in files], pa.string()),
            BYTES: pa.array([file.bytes for file in files], pa.int64()),
            MODIFIED: pa.array([file.modified for file in files], pa.timestamp("us", "UTC")),
            LABEL: pa.array([_folder_name(file.key) for file in files], pa.string()),
        }
    )


def _folder_name(key: str) -> str | None:
    """Name the folder that a file is in; None where that is the whole of them."""
    return key.rpartition("/")[0].rpartition("/")[2] or None


def _tar_table(tar: ListedFile, fields: tuple[str, ...]) -> pa.Table:
    rows = tar_rows(tar.url)
    spans = [row.span for row in rows]
    return pa.table(
        {
            KEY: pa.array([row.key for row in rows], pa.string()),
            IMAGE: pa.array([span and reference(tar.url, *span, tar.fingerprint) for span in spans], pa.string()),
            BYTES: pa.array([span and span[1] for span in spans], pa.int64()),
            TAR: pa.array([tar.url.rpartition("/")[2]] * len(rows), pa.string()),
            CAPTION: pa.array([_caption(row) for row in rows], pa.string()),
            **{name: pa.array([row.fields.get(name) for row in rows], pa.string()) for name in fields},
        }
    )


def _caption(row: TarRow) -> str | None:
    return row.fields.get(CAPTION) if row.text is None else row.text.strip()


def _state(files: Sequence[ListedFile]) -> str:
    listed = json.dumps([(file.url, file.fingerprint) for file in files])
    return hashlib.sha256(listed.encode()).hexdigest()


def _file(tar: str) -> str:
    """Name a shard after its tar: readable first, unique by the hash behind it."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", tar.rpartition("/")[2]).strip("-")[:40]
    return f"{stem}-{hashlib.sha256(tar.encode()).hexdigest()[:12]}.parquet"
