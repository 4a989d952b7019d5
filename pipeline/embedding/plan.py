"""Which rows there are, cut into units: shards are listed, their footers read and checked, no image is touched.

In: a source's config. Out: a `Survey` of its shards, and units: row-group-aligned slices that are written and
committed together. Whatever is wrong with a source is found here, before any work. Cutting is pure; reading is not.
"""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline import schema
from pipeline.config import SourceConfig
from pipeline.errors import InputError
from pipeline.store import STORE_ERRORS, column_bytes, filesystem_of, is_local, open_parquet
from pipeline.table import ImageKind, Unit

# Footers are small and may be far away: latency, not bandwidth. On disks it is Python that takes the time, one thread
# of it after the other: 10^5 footers in the page cache take 12 s with one, 16 s with 4 and 22 s with 32.
FOOTER_THREADS, DISK_THREADS = 32, 4
MAX_CHUNK = 64  # footers that a thread reads in one go: handing them out one by one costs more than reading them


@dataclass(frozen=True)
class Shard:
    """One input file as its footer and its listing describe it."""

    url: str  # its identity, however the source's path was spelled
    bytes: int
    fingerprint: str  # changes when the file is rewritten
    group_rows: tuple[int, ...]  # rows of each row group
    image_bytes: int  # of the image column
    kept_bytes: int  # of the columns that are carried into the output

    @property
    def rows(self) -> int:
        """All rows of the shard."""
        return sum(self.group_rows)


@dataclass(frozen=True)
class Survey:
    """A source as it is now: its shards and what their columns hold."""

    shards: tuple[Shard, ...]
    image_kind: ImageKind
    kept: pa.Schema

    @property
    def rows(self) -> int:
        """All rows of the source."""
        return sum(shard.rows for shard in self.shards)

    @property
    def image_bytes(self) -> int | None:
        """Mean bytes of an image; None if the source only names them, or some of them."""
        return sum(shard.image_bytes for shard in self.shards) // self.rows if self.image_kind == "bytes" else None

    @property
    def kept_bytes(self) -> int:
        """Mean bytes of a row's kept columns."""
        return sum(shard.kept_bytes for shard in self.shards) // self.rows


def survey(source: SourceConfig) -> Survey:
    """List a source's shards and check the columns of every one of them.

    Raises:
        InputError: no shard, no row, an unreadable shard, a missing column or one of the wrong type.
    """
    listed = sorted(_list_shards(source), key=lambda shard: shard[0])
    if not listed:
        raise InputError(f"source {source.name}: no shards at {source.path}")
    shards: list[Shard] = []
    for shard, columns in _footers(source, listed):
        if not shards:
            first, wanted = columns, _wanted_columns(source, shard, columns)
        elif not columns.equals(first) and _wanted_columns(source, shard, columns) != wanted:
            raise InputError(
                f"source {source.name}: shard {shard.url}: {_brief(source, columns)}; wanted, as in {shards[0].url}: "
                f"{_brief(source, first)}"
            )
        shards.append(shard)
    found = Survey(tuple(shards), *wanted)
    if found.rows == 0:
        raise InputError(f"source {source.name}: no rows in {len(shards)} shards at {source.path}")
    return found


def cut(shards: tuple[Shard, ...], unit_rows: int) -> list[Unit]:
    """Cut shards into units of whole row groups, each of at most ``unit_rows`` rows where row groups allow it."""
    return [unit for shard in shards for unit in _cut_shard(shard, unit_rows)]


def _list_shards(source: SourceConfig) -> Iterator[tuple[str, int, str]]:
    """Yield (url, bytes, fingerprint) of every Parquet file that the source's path means."""
    seen = set()
    for path in (source.path,) if isinstance(source.path, str) else source.path:
        filesystem, root = filesystem_of(path)
        try:
            found = _expand(filesystem, root)
        except (*STORE_ERRORS, ValueError) as error:
            raise InputError(f"source {source.name}: {path} cannot be listed: {error}") from error
        if not found:
            raise InputError(f"source {source.name}: no Parquet files at {path}")
        for file, entry in found.items():
            url = file if is_local(filesystem) else filesystem.unstrip_protocol(file)
            if url in seen:
                raise InputError(f"source {source.name}: {url} is named twice")
            seen.add(url)
            yield url, int(entry["size"]), _fingerprint(entry)


def _expand(filesystem: Any, root: str) -> dict[str, dict[str, Any]]:  # fsspec is untyped
    """List files with what the listing says of them: one request per folder or page, none per file."""
    if filesystem.isfile(root):
        return {root: filesystem.info(root)}
    if any(character in root for character in "*?["):
        return {path: entry for path, entry in filesystem.glob(root, detail=True).items() if entry["type"] == "file"}
    return {
        path: entry
        for path, entry in filesystem.find(root, detail=True).items()
        if path.endswith((".parquet", ".parq"))
        and not any(part.startswith((".", "_")) for part in path.removeprefix(root).split("/"))
    }


def _fingerprint(entry: dict[str, Any]) -> str:  # a listing's values have many types
    """Name this state of a file by the best that its filesystem tells of it."""
    state = next((entry[key] for key in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if entry.get(key)), "")
    return f"{entry['size']}:{state}"


def _footers(source: SourceConfig, listed: list[tuple[str, int, str]]) -> Iterator[tuple[Shard, pa.Schema]]:
    """Read all footers, many at a time, in the order listed."""
    threads = FOOTER_THREADS if any("://" in url for url, _, _ in listed) else DISK_THREADS
    some = max(1, min(MAX_CHUNK, len(listed) // (4 * threads)))
    chunks = [listed[start : start + some] for start in range(0, len(listed), some)]
    with ThreadPoolExecutor(threads) as pool:
        for footers in pool.map(lambda chunk: [_read_footer(source, *shard) for shard in chunk], chunks):
            yield from footers


def _read_footer(source: SourceConfig, url: str, size: int, fingerprint: str) -> tuple[Shard, pa.Schema]:
    try:
        with open_parquet(url) as file:
            footer = file.metadata
            groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
            image_bytes = column_bytes(footer, range(len(groups)), source.image_column)
            kept_bytes = sum(column_bytes(footer, range(len(groups)), name) for name in source.keep_columns)
            return Shard(url, size, fingerprint, groups, image_bytes, kept_bytes), file.schema_arrow
    except (pa.ArrowException, *STORE_ERRORS) as error:
        raise InputError(f"source {source.name}: shard {url} cannot be read: {error}") from error


def _wanted_columns(source: SourceConfig, shard: Shard, columns: pa.Schema) -> tuple[ImageKind, pa.Schema]:
    """Check the columns that the config names: what the image column holds, and the kept ones."""
    where = f"source {source.name}: shard {shard.url}"
    named = [source.image_column, *source.keep_columns]
    for column in [*named, source.key_column] if source.key_column else named:
        if column not in columns.names:
            raise InputError(f"{where}: no column {column!r}; it has {', '.join(columns.names)}")
    for column in source.keep_columns:
        if column in schema.RESERVED:
            raise InputError(f"{where}: keep_columns: the name {column!r} is ours; rename the column")
    if source.key_column:
        _check_key_type(where, source.key_column, columns.field(source.key_column).type)
    kept = pa.schema([pa.field(name, _plain(columns.field(name).type)) for name in source.keep_columns])
    return _image_kind(where, source.image_column, columns.field(source.image_column).type), kept


def _image_kind(where: str, column: str, kind: pa.DataType) -> ImageKind:
    if _is_bytes(kind):
        return "bytes"
    if _is_text(kind):
        return "reference"
    parts = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    if _is_bytes(parts.get("bytes")) and _is_text(parts.get("path")):
        return "struct"
    raise InputError(
        f"{where}: image_column {column!r} is {kind}; wanted binary, string, or struct<bytes: binary, path: string>"
    )


def _plain(kind: pa.DataType) -> pa.DataType:
    """Name the type that a kept column is written in: views, which pyarrow cannot filter by, become plain."""
    return {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)


def _is_bytes(kind: pa.DataType | None) -> bool:
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def _is_text(kind: pa.DataType | None) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _check_key_type(where: str, column: str, kind: pa.DataType) -> None:
    try:
        pa.array([], kind).cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise InputError(f"{where}: key_column {column!r} is {kind}; wanted a scalar that has a text form") from error


def _brief(source: SourceConfig, columns: pa.Schema) -> str:
    return ", ".join(f"{name}: {columns.field(name).type}" for name in (source.image_column, *source.keep_columns))


def _cut_shard(shard: Shard, unit_rows: int) -> Iterator[Unit]:
    first_group = first_row = rows = 0
    for group, group_rows in enumerate(shard.group_rows):
        if rows and rows + group_rows > unit_rows:
            yield _unit(shard, first_row, rows, first_group, group - first_group)
            first_group, first_row, rows = group, first_row + rows, 0
        rows += group_rows
    if rows:
        yield _unit(shard, first_row, rows, first_group, len(shard.group_rows) - first_group)


def _unit(shard: Shard, first_row: int, rows: int, first_group: int, groups: int) -> Unit:
    """Name a unit after its place and the state of its shard: readable first, unique by the hash behind it."""
    identity = f"{shard.url}\n{shard.fingerprint}\n{first_row}\n{rows}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(shard.url).stem).strip("-")[:40]
    return Unit(f"{stem}-{first_row:08d}-{digest}", shard.url, first_row, rows, first_group, groups)
