"""Embedding batches in, Parquet files out, and for each run of consecutive rows one small row that says where they lie.

Files have names that no other attempt uses, so a retried task can never duplicate: what it wrote before is named by no
receipt. A batch may hold rows of several units; each run of consecutive rows becomes files of its own, so that the
order of a unit's files is the order of its rows. Knows nothing of receipts.
"""

import hashlib
import io
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.filesystem import STORE_ERRORS
from pipeline.store import Store

THUMBNAIL_GROUP_ROWS = 128
NAMING = [schema.UNIT, schema.ROW, schema.ERROR]  # what a row says that stands for those that cannot be read


@dataclass(frozen=True)
class WriteSpec:
    """Where rows go, and what each of them says of where it came from."""

    store: str
    folder: str  # the table's, below the store's root
    source: str
    model_id: str
    d: int
    kept: pa.Schema
    partition_by: tuple[str, ...]
    content_hashes: bool = True  # whether the table's rows have them
    thumbnails: bool = False  # likewise


class Write:
    """The step: a batch with vectors becomes one report row per run of consecutive rows of a unit."""

    def __init__(self, spec: WriteSpec) -> None:
        self.spec = spec
        self.store = Store(spec.store)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the batch's rows to data/ and rejects/, and report them in the form of schema.PART_SCHEMA."""
        is_missing = pc.fill_null(pc.equal(batch[schema.REASON], schema.UNREADABLE), fill_value=False)
        missing = batch.filter(is_missing).select(NAMING).to_pylist()
        parts = [_no_rows(row[schema.UNIT], row[schema.ROW], unreadable=row[schema.ERROR]) for row in missing]
        rows = batch.filter(pc.invert(is_missing)).sort_by([(schema.UNIT, "ascending"), (schema.ROW, "ascending")])
        for run in _runs(rows):
            try:
                parts.append(self._write_run(run))
            except STORE_ERRORS as error:  # as data: what Ray makes of an exception does not say what it was
                unit, row = run[schema.UNIT][0].as_py(), run[schema.ROW][0].as_py()
                parts.append(_no_rows(unit, row, failed=f"{type(error).__name__}: {error}"))
                break
        return pa.Table.from_pylist(parts, schema.PART_SCHEMA)

    def _write_run(self, run: pa.Table) -> dict[str, Any]:  # one row of schema.PART_SCHEMA
        unit, reasons = run[schema.UNIT][0].as_py(), run[schema.REASON]
        good, bad = run.filter(pc.is_null(reasons)), run.filter(pc.is_valid(reasons))
        counts = Counter(bad[schema.REASON].to_pylist())
        return {
            "unit": unit,
            "first_row": run[schema.ROW][0].as_py(),
            "rows": run.num_rows,
            "embedded": good.num_rows,
            "rejected": bad.num_rows,
            "reused": good.num_rows - good[schema.KNOWN].null_count,
            "reasons": [{"reason": reason, "rows": rows} for reason, rows in sorted(counts.items())],
            "encoders": sorted(pc.unique(good[schema.ENCODER]).to_pylist()),
            "data": [
                self._put(f"data/{folder}{schema.UNIT_FOLDER}={unit}", rows)
                for folder, rows in _partitions(self._embeddings(good), self.spec.partition_by)
            ],
            "rejects": [self._put(f"rejects/{schema.UNIT_FOLDER}={unit}", _rejects(bad))] if bad.num_rows else [],
            "unreadable": None,
            "failed": None,
        }

    def _embeddings(self, rows: pa.Table) -> pa.Table:
        columns = [
            rows[schema.ROW_ID],
            pa.repeat(self.spec.source, rows.num_rows),
            pa.repeat(self.spec.model_id, rows.num_rows),
            rows[schema.VECTOR],
            *([rows[schema.CONTENT_HASH]] if self.spec.content_hashes else []),
            *([rows[schema.THUMBNAIL]] if self.spec.thumbnails else []),
            *(rows[name].cast(self.spec.kept.field(name).type) for name in self.spec.kept.names),
        ]
        form = schema.embeddings_schema(
            self.spec.d, self.spec.kept, content_hashes=self.spec.content_hashes, thumbnails=self.spec.thumbnails
        )
        return pa.table(columns, schema=form)

    def _put(self, folder: str, rows: pa.Table) -> dict[str, Any]:  # one value of schema.FILE_TYPE
        buffer = io.BytesIO()
        # Unit-length float32 vectors do not compress: a dictionary or zstd would only cost time. Text columns do, and
        # digits of hashes to half their length.
        plain = [schema.VECTOR, schema.THUMBNAIL]
        pq.write_table(
            rows,
            buffer,
            compression={name: "none" if name in plain else "zstd" for name in rows.column_names},
            use_dictionary=[name for name in rows.column_names if name not in (*plain, schema.CONTENT_HASH)],
            write_page_checksum=True,
            # One thumbnail is read by its group: a megabyte or two, not all of the file's.
            row_group_size=THUMBNAIL_GROUP_ROWS if schema.THUMBNAIL in rows.column_names else None,
        )
        content = buffer.getvalue()
        path = f"{folder}/{uuid.uuid4().hex}.parquet"
        self.store.replace(f"{self.spec.folder}/{path}", content)  # nobody else has that name
        digest = hashlib.sha256(content).hexdigest()
        return {"path": path, "rows": rows.num_rows, "bytes": len(content), "sha256": digest}


def _no_rows(unit: str, row: int, unreadable: str | None = None, failed: str | None = None) -> dict[str, Any]:
    """Report rows that are not there, and why, in the form of schema.PART_SCHEMA."""
    counts = {"rows": 0, "embedded": 0, "rejected": 0, "reused": 0}
    lists: dict[str, list[object]] = {"reasons": [], "encoders": [], "data": [], "rejects": []}
    return {"unit": unit, "first_row": row, **counts, **lists, "unreadable": unreadable, "failed": failed}


def _runs(batch: pa.Table) -> Iterator[pa.Table]:
    """Cut a sorted batch wherever the unit changes or a row number is skipped."""
    units = batch[schema.UNIT].combine_chunks().dictionary_encode().indices.to_numpy()
    rows = batch[schema.ROW].to_numpy()
    breaks = np.flatnonzero((np.diff(units) != 0) | (np.diff(rows) != 1)) + 1
    bounds = [0, *breaks.tolist(), batch.num_rows]
    for start, stop in pairwise(bounds):
        if stop > start:
            yield batch.slice(start, stop - start)


def _partitions(rows: pa.Table, partition_by: tuple[str, ...]) -> Iterator[tuple[str, pa.Table]]:
    """Split rows by the columns that become folders, which the files then leave out: (folder, rows)."""
    if rows.num_rows == 0:
        return
    if not partition_by:
        yield "", rows
        return
    name, *rest = partition_by
    for value in pc.unique(rows[name]).sort():
        same = pc.is_null(rows[name]) if not value.is_valid else pc.equal(rows[name], value)
        text = quote(str(value.as_py()), safe="") if value.is_valid else schema.HIVE_NULL
        inner = rows.filter(same).drop_columns([name])
        for folder, part in _partitions(inner, tuple(rest)):
            yield f"{name}={text}/{folder}", part


def _rejects(rows: pa.Table) -> pa.Table:
    columns = [
        rows[schema.ROW_ID],
        rows[schema.SHARD],
        rows[schema.ROW],
        pa.repeat(schema.STATUS_ERROR, rows.num_rows),
        rows[schema.ERROR],
        rows[schema.REASON],
    ]
    return pa.table(columns, schema=schema.REJECTS_SCHEMA)
