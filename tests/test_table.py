from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import IncompleteError, InputError
from pipeline.model import PreprocessSpec
from pipeline.store import Store
from pipeline.table import File, TableRecord, find_table, read_checked, read_record, table_folder, write_record

RECORD = TableRecord(
    source="s",
    image_column="image",
    image_kind="bytes",
    key_column=None,
    kept={"label": "string"},
    partition_by=("label",),
    unit_rows=10,
    space="abc",
    model="m",
    model_id="m@1",
    model_sha256={"w": "0"},
    preprocess=PreprocessSpec(64, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    precision="bf16",
    d=8,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_a_record_is_read_as_it_was_written(store: Store):
    assert read_record(store, "t") is None
    write_record(store, "t", RECORD, {"ray": "2.60.0"})
    assert read_record(store, "t") == RECORD
    assert asdict(read_record(store, "t"))["preprocess"]["mean"] == (0.5, 0.5, 0.5)


def test_a_damaged_record_is_named(store: Store):
    store.create("embeddings/t/table.json", b'{"source": "s"}')
    with pytest.raises(InputError, match=r"embeddings/t/table\.json is damaged"):
        read_record(store, "t")


def test_the_only_table_needs_no_name(store: Store):
    with pytest.raises(InputError, match="it has no tables"):
        find_table(store, None)
    write_record(store, "one", RECORD, {})
    assert find_table(store, None) == "one"
    write_record(store, "two", RECORD, {})
    assert find_table(store, "one") == "one"
    with pytest.raises(InputError, match="wanted --table; it has one, two"):
        find_table(store, None)
    with pytest.raises(InputError, match="wanted table 'three'"):
        find_table(store, "three")


def test_a_file_that_changed_by_one_bit_or_is_gone_is_not_read(store: Store, tmp_path: Path):
    import hashlib

    path = tmp_path / table_folder("t") / "data" / "f.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"a": range(100)}), path)
    content = path.read_bytes()
    file = File("data/f.parquet", 100, len(content), hashlib.sha256(content).hexdigest())
    assert read_checked(store, table_folder("t"), file).num_rows == 100
    path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(IncompleteError, match="is damaged"):
        read_checked(store, table_folder("t"), file)
    path.unlink()
    with pytest.raises(IncompleteError, match="is missing"):
        read_checked(store, table_folder("t"), file)
