from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.embedding.write import Write, WriteSpec
from pipeline.store import Store
from pipeline.table import File, read_checked

KEPT = pa.schema([("label", pa.string()), ("number", pa.int32())])


def batch(rows: list[tuple[str, int, str | None]]) -> pa.Table:
    """Rows of (unit, row, reason); the vector of row r is r, r, r, r and its key k<r>."""
    units, numbers, reasons = zip(*rows, strict=True) if rows else ((), (), ())
    vectors = np.repeat(np.array(numbers, np.float32), 4)
    return pa.table(
        {
            schema.UNIT: pa.array(units, pa.string()),
            schema.SHARD: pa.array([f"{unit}.parquet" for unit in units], pa.string()),
            schema.ROW: pa.array(numbers, pa.int64()),
            schema.ROW_ID: pa.array([f"k{number}" for number in numbers], pa.string()),
            schema.ENCODER: pa.array([f"device {number % 2}" for number in numbers], pa.string()),
            schema.VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors), 4),
            schema.CONTENT_HASH: pa.array([f"{number:064x}" for number in numbers], pa.string()),
            schema.KNOWN: pa.array([b"known" if number % 2 else None for number in numbers], pa.binary()),
            **schema.outcome_columns(list(reasons), list(reasons)),
            "label": pa.array([("cat", "a/b dog", None)[number % 3] for number in numbers], pa.string()),
            "number": pa.array(numbers, pa.int32()),
        }
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return Write(WriteSpec(str(tmp_path), "t", "s", "m@1", 4, KEPT, ()))


def test_runs_of_consecutive_rows_become_files_in_their_order(write: Write, tmp_path: Path):
    rows = [("b", 0, None), ("a", 5, None), ("a", 7, None), ("a", 4, None), ("b", 1, "null"), ("b", 2, None)]
    parts = write(batch(rows)).to_pylist()
    assert [(part["unit"], part["first_row"], part["rows"]) for part in parts] == [
        ("a", 4, 2),
        ("a", 7, 1),
        ("b", 0, 3),
    ]
    assert [(part["embedded"], part["rejected"]) for part in parts] == [(2, 0), (1, 0), (2, 1)]
    assert parts[2]["reasons"] == [{"reason": "null", "rows": 1}]
    assert [part["encoders"] for part in parts] == [["device 0", "device 1"], ["device 1"], ["device 0"]]
    table = pq.read_table(tmp_path / "t" / parts[2]["data"][0]["path"], partitioning=None)
    assert table.schema.equals(schema.embeddings_schema(4, KEPT))
    assert table[schema.ROW_ID].to_pylist() == ["k0", "k2"]
    assert table[schema.VECTOR].to_pylist() == [[0.0] * 4, [2.0] * 4]
    rejects = pq.read_table(tmp_path / "t" / parts[2]["rejects"][0]["path"], partitioning=None)
    assert rejects.to_pylist() == [
        {"_row_id": "k1", "shard": "b.parquet", "row": 1, "_status": "error", "_error": "null", "reason": "null"}
    ]


def test_what_is_reported_of_a_file_is_what_lies_there(write: Write, tmp_path: Path):
    (part,) = write(batch([("a", row, None) for row in range(10)])).to_pylist()
    (reported,) = part["data"]
    table = read_checked(Store(str(tmp_path)), "t", File(**reported))
    assert table.num_rows == reported["rows"] == 10
    assert (tmp_path / "t" / reported["path"]).stat().st_size == reported["bytes"]


def test_two_attempts_never_share_a_file(write: Write, tmp_path: Path):
    first, second = (write(batch([("a", 0, None)])).to_pylist()[0]["data"][0]["path"] for _ in range(2))
    assert first != second
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


def test_an_empty_batch_writes_and_reports_nothing(write: Write, tmp_path: Path):
    assert write(batch([])).num_rows == 0
    assert list(tmp_path.rglob("*.parquet")) == []


def test_kept_columns_become_hive_folders_that_any_reader_understands(tmp_path: Path):
    write = Write(WriteSpec(str(tmp_path), "t", "s", "m@1", 4, KEPT, ("label", "number")))
    (part,) = write(batch([("a", row, None) for row in range(5)])).to_pylist()
    assert sum(file["rows"] for file in part["data"]) == part["embedded"] == 5
    assert part["data"][0]["path"].startswith("data/label=a%2Fb%20dog/number=1/unit=a/")
    table = ds.dataset(tmp_path / "t" / "data", partitioning="hive").to_table().sort_by("number")
    assert table["label"].to_pylist() == ["cat", "a/b dog", None, "cat", "a/b dog"]
    assert table[schema.ROW_ID].to_pylist() == [f"k{row}" for row in range(5)]


def test_vectors_are_stored_plain_and_texts_compressed(write: Write, tmp_path: Path):
    (part,) = write(batch([("a", row, None) for row in range(100)])).to_pylist()
    group = pq.ParquetFile(tmp_path / "t" / part["data"][0]["path"]).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    vector = next(column for path, column in columns.items() if path.startswith(schema.VECTOR))
    assert vector.compression == "UNCOMPRESSED"
    assert "RLE_DICTIONARY" not in vector.encodings
    assert columns[schema.SOURCE_ID].compression == "ZSTD"
