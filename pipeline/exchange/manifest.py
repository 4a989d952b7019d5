"""Pictures that do not lie in Parquet as an ordinary source: small shards of references, and no copy of a picture.

In: a `ManifestConfig`: a folder of files, or webdataset tars. Out: Parquet in ``<store>/sources/<name>/``, and the
`SourceConfig` that the embed job takes. A shard says in its footer of what state of its tar or files it is: while that
is as it was, the shard stays byte for byte; else it is written anew, and the embed job sees it. The shard of a tar that
is gone goes too. A run that ended early has left whole shards, and the same call goes on.
"""

import io
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import ManifestConfig, SourceConfig
from pipeline.embedding.sources import read_source, write_source
from pipeline.errors import InputError
from pipeline.exchange.ahead import ahead
from pipeline.exchange.references import (
    CAPTION,
    IMAGE,
    KEY,
    LABEL,
    TAR,
    ReferenceShard,
    fields_in,
    folder_shards,
    roots_of,
    tar_shards,
)
from pipeline.filesystem import open_parquet
from pipeline.stopping import alive
from pipeline.store import Store

logger = logging.getLogger(__name__)

STATE = b"rayclip.state"  # in the footer's metadata
GROUP_ROWS = 4096  # units are cut at row groups


@dataclass(frozen=True)
class Manifest:
    """What a source has, and what was done for it."""

    source: SourceConfig  # for the embed job
    roots: tuple[str, ...]  # that its fetch.roots needs: references are followed below declared folders only
    shards: int
    rows: int
    written: int  # of these shards, now
    unreadable: dict[str, str]  # why, by URL: tars that were left out


@dataclass(frozen=True)
class _Known:
    """A shard as it is there."""

    state: str
    rows: int
    columns: tuple[str, ...]
    keys: tuple[str, ...]  # of a folder's; a tar's are not needed


def manifest(config: ManifestConfig) -> Manifest:
    """Write what is new of a source's references, and name the source in the store.

    Raises:
        InputError: there are no pictures, a tar cannot be read or holds what it may not, or the store has another
            source of this name.
    """
    store, folder = Store(config.store), f"sources/{config.name}"
    _check_name(store, config.name, folder)
    known = _known_shards(store, folder, config)
    fields: tuple[str, ...] = ()
    if config.kind == "folder":
        shards = folder_shards(config, {file: known[file].keys for file in sorted(known)})
    else:
        shards, fields = tar_shards(config, fields_in(known[min(known)].columns) if known else None)
    same = {shard.file for shard in shards if shard.file in known and known[shard.file].state == shard.state}
    written, unreadable = _write_all(store, folder, [shard for shard in shards if shard.file not in same], config)
    gone = _shards_in(store, folder) - {shard.file for shard in shards}
    store.remove_many([f"{folder}/{file}" for file in sorted(gone)], lambda: None)
    kept = (LABEL,) if config.kind == "folder" else (CAPTION, *fields)
    path = f"{store.url}/{folder}"
    source = SourceConfig(name=config.name, path=path, image_column=IMAGE, key_column=KEY, keep_columns=kept)
    write_source(store, source)
    rows = sum(known[file].rows for file in same) + sum(written.values())
    logger.info(
        "source=%s shards=%d rows=%d written=%d removed=%d unreadable=%d",
        config.name, len(shards), rows, len(written), len(gone), len(unreadable),
    )  # fmt: skip
    return Manifest(source, roots_of(config), len(same) + len(written), rows, len(written), unreadable)


def _check_name(store: Store, name: str, folder: str) -> None:
    known = read_source(store, name)
    if known is not None and known.path != f"{store.url}/{folder}":
        raise InputError(f"source {name!r}: the store has one already, at {known.path}; choose another name")


def _shards_in(store: Store, folder: str) -> set[str]:
    return {file for file in store.files_in(folder) if file.endswith(".parquet")}


def _known_shards(store: Store, folder: str, config: ManifestConfig) -> dict[str, _Known]:
    """Read what there is of shards; those that cannot be read are none.

    Raises:
        InputError: they are of another kind of pictures.
    """
    is_folder = config.kind == "folder"

    def read(file: str) -> tuple[str, _Known | None]:
        try:
            with open_parquet(f"{store.url}/{folder}/{file}") as opened:
                form, rows = opened.schema_arrow, opened.metadata.num_rows
                if (TAR in form.names) == is_folder:
                    raise InputError(f"source {config.name!r}: is not of kind {config.kind}; choose another name")
                keys = tuple(opened.read(columns=[KEY])[KEY].to_pylist()) if is_folder else ()
        except pa.ArrowException as error:
            logger.warning("shard=%s/%s is damaged, and written anew: %s", folder, file, error)
            return file, None
        state = (form.metadata or {}).get(STATE, b"").decode()
        return file, _Known(state, rows, tuple(form.names), keys)

    with ThreadPoolExecutor(config.threads) as pool:
        found = pool.map(read, _shards_in(store, folder))
        return {file: shard for file, shard in found if shard is not None}


def _write_all(
    store: Store, folder: str, shards: Iterable[ReferenceShard], config: ManifestConfig
) -> tuple[dict[str, int], dict[str, str]]:
    """Write shards, many at a time: rows by file, and why by tar of those that cannot be read."""

    def write(shard: ReferenceShard) -> tuple[ReferenceShard, int | InputError]:
        try:
            table = shard.table()
        except InputError as error:
            if config.bad_shards == "error":
                raise
            return shard, error
        content = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({STATE: shard.state}), content, row_group_size=GROUP_ROWS)
        store.replace(f"{folder}/{shard.file}", content.getvalue())
        alive()
        return shard, table.num_rows

    written: dict[str, int] = {}
    unreadable: dict[str, str] = {}
    for shard, rows in ahead(write, shards, config.threads):
        if isinstance(rows, InputError):
            unreadable[shard.of] = str(rows)
            logger.warning("source=%s left out: %s", config.name, rows)
        else:
            written[shard.file] = rows
    return written, unreadable
