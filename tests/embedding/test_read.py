from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.config import SourceConfig
from pipeline.embedding import read
from pipeline.embedding.plan import cut, survey
from pipeline.embedding.read import ReadSpec, UnitSource, read_unit

KEPT = pa.schema([("label", pa.string()), ("number", pa.int32())])
NOTHING_KEPT = pa.schema([])
LIMIT = 1 << 20


def rows_of(folder: Path, unit_rows: int, spec: ReadSpec) -> list[pa.Table]:
    source = SourceConfig(name="s", path=str(folder), image_column=spec.image_column)
    return [batch for unit in cut(survey(source).shards, unit_rows) for batch in read_unit(unit, spec)]


@pytest.mark.parametrize("unit_rows", [1, 25, 1000])
def test_every_row_comes_once_with_its_number_and_its_key(corpus: Path, unit_rows: int):
    batches = rows_of(
        corpus,
        unit_rows,
        ReadSpec("image", "bytes", "key", KEPT, LIMIT),
    )
    rows = pa.concat_tables(batches)
    expected = pa.concat_tables([pq.read_table(path) for path in sorted(corpus.glob("*.parquet"))])
    assert rows[schema.ROW_ID].to_pylist() == expected["key"].to_pylist()
    assert rows[schema.IMAGE].to_pylist() == expected["image"].to_pylist()
    assert rows["label"].to_pylist() == expected["label"].to_pylist()
    assert rows[schema.ROW].to_pylist() == list(range(40)) * 3
    assert rows[schema.REASON].null_count == 120


def test_without_a_key_column_keys_are_shard_and_row(corpus: Path):
    rows = pa.concat_tables(rows_of(corpus, 1000, ReadSpec("image", "bytes", None, NOTHING_KEPT, LIMIT)))
    keys = rows[schema.ROW_ID].to_pylist()
    assert keys[0] == f"{corpus}/shard-0.parquet#0"
    assert keys[-1] == f"{corpus}/shard-2.parquet#39"
    assert len(set(keys)) == 120


def test_batches_are_bounded_in_bytes_however_uneven_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = [b"x" * (200_000 if row % 50 == 7 else 10) for row in range(300)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    monkeypatch.setattr(read, "BATCH_BYTES", 150_000)
    batches = rows_of(tmp_path, 1000, ReadSpec("image", "bytes", None, NOTHING_KEPT, LIMIT))
    assert [row for batch in batches for row in batch[schema.ROW].to_pylist()] == list(range(300))
    assert all(batch[schema.IMAGE].nbytes <= 300_000 or batch.num_rows == 1 for batch in batches)


def test_paths_are_resolved_against_the_folder_of_their_shard(tmp_path: Path):
    paths = ["a.jpg", "deep/b.jpg", "/abs/c.jpg", "s3://bucket/d.jpg", None]
    pq.write_table(pa.table({"image": paths}), tmp_path / "a.parquet")
    (batch,) = rows_of(tmp_path, 100, ReadSpec("image", "reference", None, NOTHING_KEPT, LIMIT))
    assert batch[schema.REFERENCE].to_pylist() == [
        f"{tmp_path}/a.jpg",
        f"{tmp_path}/deep/b.jpg",
        "/abs/c.jpg",
        "s3://bucket/d.jpg",
        None,
    ]
    assert batch[schema.IMAGE].null_count == 5


@pytest.mark.parametrize("kind", ["reference", "struct"])
def test_a_path_that_is_no_text_is_a_path_to_nothing(tmp_path: Path, kind: str):
    raw = pa.array([b"a.jpg", b"b\xff.jpg"], pa.binary())
    paths = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    images = paths
    if kind == "struct":
        images = pa.StructArray.from_arrays([pa.nulls(2, pa.binary()), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    (batch,) = rows_of(tmp_path, 100, ReadSpec("image", kind, None, NOTHING_KEPT, LIMIT))
    assert batch[schema.REFERENCE].to_pylist() == [f"{tmp_path}/a.jpg", f"{tmp_path}/b\ufffd.jpg"]


def test_of_a_struct_the_bytes_count_before_the_path(tmp_path: Path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": b"x", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None], kind)
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    assert survey(SourceConfig(name="s", path=str(tmp_path))).image_kind == "struct"
    (batch,) = rows_of(tmp_path, 100, ReadSpec("image", "struct", None, NOTHING_KEPT, LIMIT))
    assert batch[schema.IMAGE].to_pylist() == [b"x", None, None]
    assert batch[schema.REFERENCE].to_pylist() == [None, f"{tmp_path}/b.jpg", None]


def test_an_image_that_is_too_long_goes_no_further_than_reading(tmp_path: Path):
    pq.write_table(pa.table({"image": [b"x" * 10, b"x" * 11, None, b"x" * 1000]}), tmp_path / "a.parquet")
    (batch,) = rows_of(tmp_path, 100, ReadSpec("image", "bytes", None, NOTHING_KEPT, 10))
    assert batch[schema.IMAGE].to_pylist() == [b"x" * 10, None, None, None]
    assert batch[schema.IMAGE].nbytes < 100  # the bytes are gone, not only hidden
    assert batch[schema.REASON].to_pylist() == [None, "too_many_bytes", None, "too_many_bytes"]
    assert batch[schema.ERROR][3].as_py() == "Failed to decode image at row 3: 1000 bytes, at most 10 are read"


def test_rows_that_are_left_out_carry_their_reason_and_no_image(corpus: Path):
    source = SourceConfig(name="s", path=str(corpus))
    units = cut(survey(source).shards, 25)
    shard = units[2].shard
    left_out = {shard: np.array([0, 19, 20, 39])}
    tasks = UnitSource(units, ReadSpec("image", "bytes", "key", NOTHING_KEPT, LIMIT), left_out).get_read_tasks(1)
    rows = pa.concat_tables([batch for task in tasks for batch in task.read_fn()])
    out = rows.filter(pc.is_valid(rows[schema.REASON]))
    assert out[schema.SHARD].to_pylist() == [shard] * 4
    assert out[schema.ROW].to_pylist() == [0, 19, 20, 39]
    assert out[schema.IMAGE].null_count == 4
    assert out[schema.ERROR][1].as_py() == "Left out image at row 19: an earlier row has the key 'row-00059'"
    assert rows.num_rows == 120
