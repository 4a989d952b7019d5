"""Sources, embeddings and rejects as relations that DuckDB and Arrow scan: what is read of them is what is asked for.

In: a store and a name. Out: an Arrow dataset of exactly the files that count: a source's shards as they are now; of a
table, what its live receipts name.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs

from pipeline import schema
from pipeline.config import SourceConfig
from pipeline.embedding.plan import list_shards
from pipeline.embedding.sources import read_source
from pipeline.errors import InputError
from pipeline.filesystem import filesystem_of, is_local
from pipeline.store import Store
from pipeline.table import File, Receipt, live_receipts, read_receipts, read_record, table_folder

SOURCES, EMBEDDINGS, REJECTS = "sources", "embeddings", "rejects"  # the schemas that SQL has


def source_relation(config: SourceConfig) -> ds.Dataset:
    """Give a source's shards as one relation.

    Raises:
        InputError: they cannot be listed, or there are none.
    """
    urls = [url for url, _, _ in list_shards(config)]
    return ds.dataset([_dataset(url, paths) for url, paths in _by_filesystem(urls)])


def table_relation(store: Store, table: str) -> ds.Dataset:
    """Give a table's embedded rows.

    Raises:
        InputError: there is no such table.
    """
    record = read_record(store, table)
    if record is None:
        raise InputError(f"table {table}: has no table.json")
    types = {name: _type_named(kind) for name, kind in record.kept.items()}
    folders = pa.schema([(name, types[name]) for name in record.partition_by])
    kept = pa.schema([(name, kind) for name, kind in types.items() if name not in record.partition_by])
    form = schema.embeddings_schema(record.d, kept, content_hashes=record.content_hashes)
    return _committed(store, table, [file for receipt in _live(store, table) for file in receipt.data], form, folders)


def rejects_relation(store: Store, table: str) -> ds.Dataset:
    """Give the rows of a table that could not be embedded, with their reasons."""
    files = [file for receipt in _live(store, table) for file in receipt.rejects]
    return _committed(store, table, files, schema.REJECTS_SCHEMA, pa.schema([]))


def relation(store: Store, name: str, kind: str | None = None) -> ds.Dataset | None:
    """Give the relation of a name: a source, or else a table's embeddings; None if there is no such thing.

    Args:
        kind: which of both, or the table's rejects.
    """
    if kind in (None, SOURCES) and (config := read_source(store, name)) is not None:
        return source_relation(config)
    if kind == SOURCES or not store.exists(f"{table_folder(name)}/table.json"):
        return None
    return rejects_relation(store, name) if kind == REJECTS else table_relation(store, name)


def _live(store: Store, table: str) -> Iterable[Receipt]:
    receipts = live_receipts(read_receipts(store, table_folder(table)).values()).values()
    return sorted(receipts, key=lambda receipt: (receipt.shard, receipt.first_row))


def _committed(store: Store, table: str, files: list[File], form: pa.Schema, folders: pa.Schema) -> ds.Dataset:
    if not files:
        return ds.dataset(pa.schema([*form, *folders]).empty_table())
    base = store.path(table_folder(table))
    handler = _arrow_filesystem(store.url)
    format_ = ds.ParquetFileFormat()
    first = format_.inspect(f"{base}/{files[0].path}", filesystem=handler)
    partitioning = ds.partitioning(folders, flavor="hive") if len(folders) else None
    factory = ds.FileSystemDatasetFactory(
        handler,
        [f"{base}/{file.path}" for file in files],
        format_,
        ds.FileSystemFactoryOptions(
            partition_base_dir=f"{base}/{files[0].path.partition('/')[0]}", partitioning=partitioning
        ),
    )
    return factory.finish(pa.schema([*first, *folders]))


def _by_filesystem(urls: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Group paths by the filesystem that they are on, each with one URL of it."""
    groups: dict[str, tuple[str, list[str]]] = {}
    for url in urls:
        scheme = url.partition("://")[0] if "://" in url else ""
        groups.setdefault(scheme, (url, []))[1].append(filesystem_of(url)[1])
    yield from groups.values()


def _dataset(url: str, paths: list[str]) -> ds.Dataset:
    return ds.dataset(paths, filesystem=_arrow_filesystem(url), format="parquet")


def _arrow_filesystem(url: str) -> fs.FileSystem:
    filesystem, _ = filesystem_of(url)
    return fs.LocalFileSystem() if is_local(filesystem) else fs.PyFileSystem(fs.FSSpecHandler(filesystem))


def _type_named(kind: str) -> pa.DataType:
    """Give the type that table.json names; only folders need it, which are of plain types."""
    try:
        return pa.type_for_alias(kind)
    except ValueError:
        return pa.string()
