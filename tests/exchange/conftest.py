"""Tables of a few hundred made-up vectors with partitions, nulls, rejects and two shards, without a model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.write import Write, WriteSpec
from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import Unit, table_folder, write_record
from tests.test_table import RECORD

D, SHARD_ROWS, UNIT_ROWS = 16, 120, 50
KEPT = pa.schema([("caption", pa.string()), ("number", pa.int32()), ("folder", pa.int64())])


def is_bad(row: int) -> bool:
    return row % 10 == 3


def row_of(shard: str, row: int) -> dict:
    """A row as the table should have it; its vector is a function of its name."""
    rng = np.random.default_rng([ord(shard), row])
    vector = rng.standard_normal(D)
    return {
        schema.ROW_ID: f"{shard}-{row:03d}",
        schema.VECTOR: (vector / np.linalg.norm(vector)).astype(np.float32),
        "caption": None if row % 7 == 0 else f"picture {row} é",
        "number": row,
        "folder": None if row % 3 == 0 else row % 3,
    }


def write_table(store: Store, shards: str = "ab", rows: int = SHARD_ROWS, *, thumbnails: bool = False) -> None:
    """Write units in an order that is not that of ids, partitioned by folder."""
    folder = table_folder("t")
    kept = {field.name: str(field.type) for field in KEPT}
    preprocess = replace(RECORD.preprocess, thumbnail_px=16 if thumbnails else None)
    record = replace(RECORD, source="s", d=D, kept=kept, partition_by=("folder",), preprocess=preprocess)
    write_record(store, "t", record, {})
    spec = WriteSpec(
        store.url, folder, "s", RECORD.model_id, D, KEPT, ("folder",), content_hashes=False, thumbnails=thumbnails
    )
    units = [
        Unit(f"{shard}-{first}", f"/{shard}.parquet", first, min(UNIT_ROWS, rows - first), 0, 1)
        for shard in shards
        for first in range(0, rows, UNIT_ROWS)
    ]
    with Lease(store, folder) as lease:
        ledger = Ledger(store, folder, [f"/{shard}.parquet" for shard in shards], units, lease)
        for unit in reversed(units):
            for part in Write(spec)(_batch(unit)).to_pylist():
                ledger.add(part)


def thumbnail(row_id: str) -> bytes | None:
    return None if row_id.endswith("0") else f"picture of {row_id}".encode()


def _batch(unit: Unit) -> pa.Table:
    numbers = range(unit.first_row, unit.first_row + unit.rows)
    rows = [row_of(unit.shard[1], number) for number in numbers]
    bad = [schema.Reason.NULL.value if is_bad(number) else None for number in numbers]
    vectors = np.stack([row[schema.VECTOR] for row in rows])
    return pa.table(
        {
            schema.UNIT: [unit.id] * unit.rows,
            schema.SHARD: [unit.shard] * unit.rows,
            schema.ROW: pa.array(numbers, pa.int64()),
            schema.ROW_ID: [row[schema.ROW_ID] for row in rows],
            schema.ENCODER: ["cpu fp32"] * unit.rows,
            schema.KNOWN: pa.nulls(unit.rows, pa.binary()),
            schema.VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), D),
            schema.THUMBNAIL: [thumbnail(row[schema.ROW_ID]) for row in rows],
            **schema.outcome_columns(bad, bad),
            **{field.name: pa.array([row[field.name] for row in rows], field.type) for field in KEPT},
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(str(tmp_path / "store"))
    write_table(made)
    return made


@pytest.fixture
def empty_store(tmp_path: Path) -> Store:
    """A table whose record is written, and no row yet."""
    made = Store(str(tmp_path / "empty"))
    write_table(made, shards="")
    return made


@pytest.fixture
def wanted() -> dict[str, dict]:
    """Every row that the table of `store` has, by id."""
    rows = [row_of(shard, number) for shard in "ab" for number in range(SHARD_ROWS) if not is_bad(number)]
    return {row[schema.ROW_ID]: row for row in rows}


def same_rows(found: list[dict], wanted: dict[str, dict]) -> bool:
    """Tell whether rows have the vectors and kept columns that they should, each once."""
    assert sorted(row[schema.ROW_ID] for row in found) == sorted(wanted)
    for row in found:
        right = wanted[row[schema.ROW_ID]]
        assert all(row[name] == right[name] for name in KEPT.names if name in row)
        if schema.VECTOR in row:
            assert np.array_equal(np.array(row[schema.VECTOR], np.float32), right[schema.VECTOR])
    return True
