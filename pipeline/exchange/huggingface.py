"""A table's rows as a `datasets.Dataset`: memory-mapped, from exactly the files that live receipts name.

In: a store and a table. Out: a Dataset. Not by `datasets.load_dataset` over data/: that takes whatever lies there, and
leaves hive partitions out. The rows are copied once for each state of the table into this machine's cache.
"""

import hashlib
import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.exchange.rows import Rows, rows_of
from pipeline.machine import cache_folder
from pipeline.store import Store

KEY_DIGITS = 24  # of the SHA-256 that a copy is named by


def load_dataset(
    store: Store, table: str, *, columns: Sequence[str] | None = None, cache: str | Path | None = None
) -> Any:  # datasets.Dataset, which is untyped
    """Give a table's rows as a Dataset, in the order of vector ids.

    Args:
        columns: which; None: all.
        cache: the folder that the copy lies in; None: rayclip's below ~/.cache.

    Raises:
        ImportError: the package datasets is not installed.
        InputError: there is no such table or column.
        IncompleteError: a file of the table is missing or damaged.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError("load_dataset needs the package datasets: pip install 'datasets>=4.0'") from error
    rows = rows_of(store, table, columns)
    folder = cache_folder() / "datasets" if cache is None else Path(cache)
    copy = folder / f"{table}-{_key(rows)}.arrow"
    if not copy.is_file():
        _copy(rows, copy)
    return datasets.Dataset.from_file(str(copy))


def _key(rows: Rows) -> str:
    state = [rows.store.url, rows.table, rows.schema.to_string(), [file.sha256 for file in rows.files]]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:KEY_DIGITS]


def _copy(rows: Rows, copy: Path) -> None:
    """Write all rows as an Arrow stream, under its name only when it is whole."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".making-") as scratch:
        made, written = Path(scratch) / copy.name, 0
        with pa.OSFile(str(made), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
            for batch in rows.batches():
                writer.write_batch(batch)
                written += batch.num_rows
            if not written:  # datasets cannot cast columns that have no chunk
                writer.write_batch(pa.RecordBatch.from_pylist([], rows.schema))
        rows.check_count(written, str(copy))
        made.replace(copy)
