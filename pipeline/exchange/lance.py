"""A table's rows as a Lance table, which LanceDB opens and searches with its own client.

In: a store and a table. Out: ``<folder>/<name>.lance``, as LanceDB wants it; vectors are FixedSizeList there as here.
A version of it counts when its manifest is written, last, so that an export that ended early is no table.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import RunError
from pipeline.exchange.rows import Rows, rows_of
from pipeline.exchange.target import Exported, check_free
from pipeline.store import Store


def export_lance(
    store: Store,
    table: str,
    folder: str,
    *,
    name: str | None = None,
    columns: Sequence[str] | None = None,
    overwrite: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> Exported:
    """Write a table's rows to ``<folder>/<name>.lance``.

    Args:
        folder: a path, or a URL of a scheme that Lance knows: what `lancedb.connect` takes.
        name: of the Lance table; None: the table's own.
        columns: which; None: all.
        overwrite: whether a Lance table of that name gets a new version that holds these rows and no others.
        storage_options: what Lance needs to reach the URL beside the environment.

    Raises:
        ImportError: pylance is not installed.
        InputError: there is no such table or column, or something is in the place.
        IncompleteError: a file of the table is missing or damaged.
    """
    lance = _lance()
    place = f"{name or table}.lance"
    target = f"{folder.rstrip('/')}/{place}"
    rows, there = rows_of(store, table, columns), Store(folder)
    check_free(target, there.files(place), overwrite=overwrite)
    failed: list[RunError] = []
    reader = pa.RecordBatchReader.from_batches(rows.schema, _noted(rows, failed))
    try:
        mode = "overwrite" if overwrite else "create"
        written = lance.write_dataset(reader, target, mode=mode, storage_options=dict(storage_options or {}) or None)
    finally:
        if failed:  # which Lance wraps into an error of its own
            raise failed[0]
    rows.check_count(written.count_rows(), target)
    files = there.files(place)
    return Exported(target, rows.count, len(files), sum(files.values()))


def _lance() -> Any:  # the module, which is untyped
    try:
        return importlib.import_module("lance")
    except ImportError as error:
        raise ImportError("exports to Lance need pylance: pip install 'rayclip[lance]'") from error


def _noted(rows: Rows, failed: list[RunError]) -> Iterator[pa.RecordBatch]:
    try:
        yield from rows.batches()
    except RunError as error:
        failed.append(error)
        raise
