"""Which rows there are, cut into units: shards are listed, their footers read and checked, no image is touched.

In: a source's config, and its shards as an earlier run knew them. Out: a `Survey` of its shards, and units:
row-group-aligned slices that are written and committed together. Whatever is wrong with a source is found here, before
any work; shards that are as they were are not opened. Cutting is pure; reading is not.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from fsspec.utils import glob_translate

from pipeline import schema
from pipeline.config import SourceConfig
from pipeline.errors import InputError
from pipeline.filesystem import (
    STORE_ERRORS,
    column_bytes,
    filesystem_of,
    fingerprint,
    is_file,
    is_local,
    list_files,
    open_parquet,
    tried,
)
from pipeline.stopping import alive
from pipeline.table import ImageKind, Unit

logger = logging.getLogger(__name__)

# Footers are small and may be far away: latency, not bandwidth. On disks it is Python that takes the time, one thread
# of it after the other: 10^5 footers in the page cache take 12 s with one, 16 s with 4 and 22 s with 32.
FOOTER_THREADS, DISK_THREADS = 32, 4
MAX_CHUNK = 64  # footers that a thread reads in one go: handing them out one by one costs more than reading them
HASH_BYTES = 8 << 20  # read at once


@dataclass(frozen=True)
class Shard:
    """One input file as its footer and its listing describe it."""

    url: str  # its identity, however the source's path was spelled
    bytes: int
    fingerprint: str  # as the listing tells: changes when the file is rewritten, and when it is only copied
    group_rows: tuple[int, ...]  # rows of each row group
    image_bytes: int  # of the image column
    kept_bytes: int  # of the columns that are carried into the output
    state: str  # of its contents: the fingerprint that they were first seen under
    sha256: str | None = None  # of the file, where the source asks for it

    @property
    def rows(self) -> int:
        """All rows of the shard."""
        return sum(self.group_rows)


Footer = tuple[Shard, pa.Schema]


@dataclass(frozen=True)
class Survey:
    """A source as it is now: its shards and what their columns hold."""

    shards: tuple[Shard, ...]
    image_kind: ImageKind
    kept: pa.Schema
    unreadable: dict[str, str] = field(default_factory=dict)  # URL -> why; left out, as the source asks

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


def survey(source: SourceConfig, known: Mapping[str, Shard] | None = None) -> Survey:
    """List a source's shards, and check the columns of every one that is not known as it is.

    Args:
        known: shards of an earlier survey by URL, whose columns were found right for this source.

    Raises:
        InputError: no shard, no row, a shard that cannot be read where the source does not skip those, a missing column
            or one of the wrong type.
    """
    listed = sorted(list_shards(source), key=lambda shard: shard[0])
    known = known or {}
    is_same = [_is_as_known(source, known.get(url), fingerprint) for url, _, fingerprint in listed]
    same = [place for place, as_known in zip(listed, is_same, strict=True) if as_known]
    changed = [place for place, as_known in zip(listed, is_same, strict=True) if not as_known]
    readable: dict[str, Shard] = {}
    unreadable: dict[str, str] = {}
    first: tuple[Shard, pa.Schema] | None = None
    # One shard that is as it was is opened too: it says what the columns are, and should new ones differ, which.
    for url, footer in chain(_until_one(source, same, known), _footers(source, changed, known)):
        if isinstance(footer, str):
            unreadable[url] = footer
            logger.warning("shard=%s left out: %s", url, footer)
            continue
        shard, columns = footer
        readable[url] = shard
        if first is None:
            first, wanted = footer, _wanted_columns(source, shard, columns)
        elif not columns.equals(first[1]) and _wanted_columns(source, shard, columns) != wanted:
            raise InputError(
                f"source {source.name}: shard {url}: {_brief(source, columns)}; wanted, as in {first[0].url}: "
                f"{_brief(source, first[1])}"
            )
    if first is None:
        raise InputError(f"source {source.name}: none of {len(listed)} shards can be read: {min(unreadable.items())}")
    all_shards = (readable.get(url) or known[url] for url, _, _ in listed if url not in unreadable)
    found = Survey(tuple(all_shards), *wanted, unreadable)
    if found.rows == 0:
        raise InputError(f"source {source.name}: no rows in {len(found.shards)} shards at {source.path}")
    return found


def list_shards(source: SourceConfig) -> Iterator[tuple[str, int, str]]:
    """Yield (url, bytes, fingerprint) of every Parquet file that the source's path means.

    Raises:
        InputError: a path cannot be listed, means no file, or one that another means too.
    """
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
            yield url, int(entry["size"]), fingerprint(entry)


def cut(shards: tuple[Shard, ...], unit_rows: int) -> list[Unit]:
    """Cut shards into units of whole row groups, each of at most ``unit_rows`` rows where row groups allow it."""
    return [unit for shard in shards for unit in _cut_shard(shard, unit_rows)]


def _expand(filesystem: Any, root: str) -> dict[str, dict[str, Any]]:  # fsspec is untyped
    """List files with what the listing says of them: one request per folder or page, none per file."""
    if is_file(filesystem, root):
        return {root: filesystem.info(root)}
    if any(character in root for character in "*?["):
        # Not by fsspec's glob: it takes a folder that cannot be listed for an empty one.
        wanted = re.compile(glob_translate(root))
        above = re.split(r"[*?\[]", root, maxsplit=1)[0].rpartition("/")[0]
        if not above:
            raise ValueError("wanted a folder before the first wildcard")
        depth = None if "**" in root else root.count("/") - above.count("/")
        found = list_files(filesystem, above, depth, follow=True)
        return {path: entry for path, entry in found.items() if wanted.match(path)}
    return {
        path: entry
        for path, entry in list_files(filesystem, root, follow=True).items()
        if path.endswith((".parquet", ".parq"))
        and not any(part.startswith((".", "_")) for part in path.removeprefix(root).split("/"))
    }


def _until_one(
    source: SourceConfig, listed: list[tuple[str, int, str]], known: Mapping[str, Shard]
) -> Iterator[tuple[str, Footer | str]]:
    """Read footers one after the other, until one can be read."""
    for place in listed:
        url, footer = _footer(source, place, known)
        yield url, footer
        if not isinstance(footer, str):
            return


def _is_as_known(source: SourceConfig, known: Shard | None, fingerprint: str) -> bool:
    is_hashed = source.fingerprint == "listing" or (known is not None and known.sha256 is not None)
    return known is not None and known.fingerprint == fingerprint and is_hashed


def _footers(
    source: SourceConfig, listed: list[tuple[str, int, str]], known: Mapping[str, Shard]
) -> Iterator[tuple[str, Footer | str]]:
    """Read all footers, many at a time, in the order listed; for shards to be skipped, why they cannot be read."""
    threads = FOOTER_THREADS if any("://" in url for url, _, _ in listed) else DISK_THREADS
    some = max(1, min(MAX_CHUNK, len(listed) // (4 * threads)))
    chunks = [listed[start : start + some] for start in range(0, len(listed), some)]
    with ThreadPoolExecutor(threads) as pool:
        for footers in pool.map(lambda chunk: [_footer(source, place, known) for place in chunk], chunks):
            yield from footers


def _footer(source: SourceConfig, place: tuple[str, int, str], known: Mapping[str, Shard]) -> tuple[str, Footer | str]:
    url, size, fingerprint = place
    try:
        read = partial(_read_footer, source, url, size, fingerprint, known.get(url))
        return url, tried(read) if "://" in url else read()
    except (pa.ArrowException, *STORE_ERRORS) as error:
        if source.bad_shards == "skip":
            return url, str(error)
        raise InputError(
            f"source {source.name}: shard {url} cannot be read: {error}; mend or remove it, or leave such shards out "
            "with --source.bad_shards skip"
        ) from error


def _read_footer(source: SourceConfig, url: str, size: int, fingerprint: str, known: Shard | None) -> Footer:
    sha256 = _sha256(url) if source.fingerprint == "content" else None
    is_same = known is not None and (known.fingerprint == fingerprint or (sha256 and known.sha256 == sha256))
    with open_parquet(url) as file:
        footer = file.metadata
        groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
        shard = Shard(
            url=url,
            bytes=size,
            fingerprint=fingerprint,
            group_rows=groups,
            image_bytes=column_bytes(footer, range(len(groups)), source.image_column),
            kept_bytes=sum(column_bytes(footer, range(len(groups)), name) for name in source.keep_columns),
            state=known.state if known is not None and is_same else fingerprint,
            sha256=sha256,
        )
        return shard, file.schema_arrow


def _sha256(url: str) -> str:
    filesystem, path = filesystem_of(url)
    digest = hashlib.sha256()
    with filesystem.open(path, "rb", block_size=HASH_BYTES, cache_type="readahead") as file:
        while content := file.read(HASH_BYTES):
            digest.update(content)
            alive()
    return digest.hexdigest()


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
    """Name a unit after its place and its shard's state: readable first, unique by the hash behind it."""
    identity = f"{shard.url}\n{shard.state}\n{first_row}\n{rows}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(shard.url).stem).strip("-")[:40]
    return Unit(
        id=f"{stem}-{first_row:08d}-{digest}",
        shard=shard.url,
        first_row=first_row,
        rows=rows,
        first_group=first_group,
        groups=groups,
        state=shard.state,
        shard_rows=shard.rows,
        fingerprint=shard.fingerprint,
    )
