"""Tables of made-up vectors, written as the embed job writes them, without a model."""

import json
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

MERGEABLE = [
    "Flat",
    "IVF16,Flat",
    "IVF16,SQ8",
    "IVF16,SQ4",
    "IVF16,SQ6",
    "IVF16,SQfp16",
    "IVF16,SQbf16",
    "IVF16_HNSW8,SQ8",
    "IVF16,PQ8",
    "IVF16,RaBitQ",
    "RR,IVF16,RaBitQ4",
    "OPQ8_32,IVF16,PQ8",
    "PCA16,IVF16,SQ8",
    "L2norm,IVF16,SQ8",
]


def made_up_vectors(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Unit vectors with a falling spectrum around overlapping centres: harder than tight clusters."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, d + 1) ** -0.5
    centres = rng.standard_normal((max(1, n // 100), d)) * spectrum
    vectors = rng.standard_normal((n, d)) * spectrum + 0.8 * centres[rng.integers(len(centres), size=n)]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_table(store_url: str, table: str, vectors: np.ndarray, unit_rows: int, shard: str = "a") -> Store:
    """Write vectors as units of a shard; every tenth row is a reject, so that ids and row numbers differ."""
    store, d, prefix = Store(store_url), vectors.shape[1], "" if shard == "a" else f"{shard}-"
    write_record(store, table, replace(RECORD, d=d, kept={"number": "int64"}, partition_by=()), {})
    write = Write(
        WriteSpec(
            store_url, table_folder(table), "s", "m@1", d, pa.schema([("number", pa.int64())]), (), content_hashes=False
        )
    )
    rows = -(-len(vectors) * 10 // 9)
    while rows - -(-rows // 10) < len(vectors):
        rows += 1
    numbers = np.arange(rows)
    bad = numbers % 10 == 0
    padded = np.zeros((rows, d), np.float32)
    good = numbers[~bad][: len(vectors)]
    padded[good] = vectors
    rows = int(good[-1]) + 1
    units = [
        Unit(f"{prefix}u-{first:06d}", f"/{shard}.parquet", first, min(unit_rows, rows - first), 0, 1)
        for first in range(0, rows, unit_rows)
    ]
    with Lease(store, table_folder(table)) as lease:
        ledger = Ledger(store, table_folder(table), [f"/{shard}.parquet"], units, lease)
        for unit in reversed(units):  # ids must not depend on the order of completion
            span = slice(unit.first_row, unit.first_row + unit.rows)
            reasons = [schema.Reason.NULL.value if flag else None for flag in bad[span]]
            batch = pa.table(
                {
                    schema.UNIT: [unit.id] * unit.rows,
                    schema.SHARD: [unit.shard] * unit.rows,
                    schema.ROW: numbers[span],
                    schema.ROW_ID: [f"{prefix}row-{number}" for number in numbers[span]],
                    schema.ENCODER: ["cpu fp32"] * unit.rows,
                    schema.KNOWN: pa.nulls(unit.rows, pa.binary()),
                    schema.VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(padded[span].reshape(-1)), d),
                    **schema.outcome_columns(reasons, reasons),
                    "number": numbers[span],
                }
            )
            for part in write(batch).to_pylist():
                ledger.add(part)
    return store


@pytest.fixture
def vectors() -> np.ndarray:
    return made_up_vectors(2000, 32)


@pytest.fixture
def store(tmp_path: Path, vectors: np.ndarray) -> Store:
    return write_table(str(tmp_path / "store"), "t", vectors, 150)


def card_of(store: Store, version: str) -> dict:
    return json.loads(store.read(f"indexes/t/{version}/card.json"))
