import sys
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.errors import IncompleteError, InputError
from pipeline.exchange.huggingface import load_dataset
from pipeline.exchange.rows import rows_of
from pipeline.store import Store
from pipeline.table import read_receipts, receipt_path, table_folder
from tests.exchange.conftest import D, same_rows, write_table


def test_a_dataset_has_the_rows_of_the_live_files_and_no_others(store: Store, tmp_path: Path, wanted: dict[str, dict]):
    found = load_dataset(store, "t", cache=tmp_path)
    assert same_rows(list(found), wanted)
    assert found[schema.ROW_ID] == pa.Table.from_batches(rows_of(store, "t").batches())[schema.ROW_ID].to_pylist()
    assert found.features[schema.VECTOR].length == D
    copies = list(tmp_path.iterdir())
    assert load_dataset(store, "t", cache=tmp_path).num_rows == len(wanted)
    assert list(tmp_path.iterdir()) == copies

    receipt = read_receipts(store, table_folder("t"))["a-0"]
    store.remove(receipt_path(table_folder("t"), "a-0"))
    fewer = load_dataset(store, "t", cache=tmp_path)
    assert fewer.num_rows == len(wanted) - receipt.embedded


def test_columns_are_chosen(store: Store, tmp_path: Path, wanted: dict[str, dict]):
    found = load_dataset(store, "t", columns=["folder", schema.ROW_ID], cache=tmp_path)
    assert found.column_names == ["folder", schema.ROW_ID]
    assert same_rows(list(found), wanted)
    with pytest.raises(InputError, match="no column 'nothing'"):
        load_dataset(store, "t", columns=["nothing"], cache=tmp_path)


def test_a_table_without_rows_is_a_dataset_without_rows(empty_store: Store, tmp_path: Path):
    found = load_dataset(empty_store, "t", cache=tmp_path)
    assert (found.num_rows, schema.VECTOR in found.column_names) == (0, True)


def test_a_far_store_is_loaded_alike(s3: str, tmp_path: Path, wanted: dict[str, dict]):
    far = Store(f"{s3}/exchange-datasets")
    write_table(far)
    assert same_rows(list(load_dataset(far, "t", cache=tmp_path)), wanted)


def test_a_damaged_file_leaves_no_copy(store: Store, tmp_path: Path):
    store.replace(f"{table_folder('t')}/{rows_of(store, 't').files[-1].path}", b"?")
    with pytest.raises(IncompleteError, match="is damaged"):
        load_dataset(store, "t", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_the_package_the_install_line_is_named(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install 'datasets"):
        load_dataset(store, "t")
