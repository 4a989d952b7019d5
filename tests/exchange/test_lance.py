import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.errors import IncompleteError, InputError
from pipeline.exchange.lance import export_lance
from pipeline.exchange.rows import rows_of
from pipeline.searching.index import open_index
from pipeline.store import Store
from pipeline.table import find_table, table_folder
from tests.exchange.conftest import same_rows


def test_lancedb_opens_an_export_and_finds_what_an_exact_search_finds(demo_store: str, tmp_path: Path):
    store = Store(demo_store)
    table = find_table(store, None)
    exported = export_lance(store, table, str(tmp_path))
    opened = lancedb.connect(str(tmp_path)).open_table(table)
    assert opened.count_rows() == exported.rows == rows_of(store, table).count
    assert pa.types.is_fixed_size_list(opened.schema.field(schema.VECTOR).type)
    index = open_index(store, table)
    for number in (0, 17, 141):
        query = index.vector(number).astype(np.float32)
        query /= np.linalg.norm(query)
        _, (ids,) = index.search(query[None], 10, exact=True)
        found = opened.search(query).distance_type("dot").limit(10).to_arrow()
        assert found[schema.ROW_ID].to_pylist() == index.row_ids.take(pa.array(ids)).to_pylist()


def test_every_row_and_column_is_there_once(store: Store, tmp_path: Path, wanted: dict[str, dict]):
    exported = export_lance(store, "t", str(tmp_path), name="mine")
    assert (exported.rows, exported.target) == (len(wanted), f"{tmp_path}/mine.lance")
    assert exported.bytes == sum(path.stat().st_size for path in Path(exported.target).rglob("*") if path.is_file())
    found = lancedb.connect(str(tmp_path)).open_table("mine").to_arrow()
    assert same_rows(found.to_pylist(), wanted)
    assert found.column_names == rows_of(store, "t").schema.names


def test_a_place_that_is_taken_is_refused_unless_it_may_be_replaced(store: Store, tmp_path: Path):
    export_lance(store, "t", str(tmp_path))
    with pytest.raises(InputError, match="overwrite=True"):
        export_lance(store, "t", str(tmp_path))
    again = export_lance(store, "t", str(tmp_path), columns=[schema.ROW_ID], overwrite=True)
    opened = lancedb.connect(str(tmp_path)).open_table("t")
    assert (opened.count_rows(), opened.schema.names) == (again.rows, [schema.ROW_ID])


def test_an_export_of_a_damaged_table_ends_and_leaves_no_table(store: Store, tmp_path: Path):
    path = f"{table_folder('t')}/{rows_of(store, 't').files[-1].path}"
    store.replace(path, b"?")
    with pytest.raises(IncompleteError, match="is damaged"):
        export_lance(store, "t", str(tmp_path))
    with pytest.raises(ValueError, match="not found"):
        lancedb.connect(str(tmp_path)).open_table("t")


def test_a_table_without_rows_is_exported_with_its_columns(empty_store: Store, tmp_path: Path):
    assert export_lance(empty_store, "t", str(tmp_path)).rows == 0
    assert lancedb.connect(str(tmp_path)).open_table("t").count_rows() == 0


def test_a_url_is_written_to_like_a_folder(store: Store, s3: str, wanted: dict[str, dict]):
    options = {"allow_http": "true"}
    export_lance(store, "t", f"{s3}/lance", storage_options=options)
    opened = lancedb.connect(f"{s3}/lance", storage_options=options).open_table("t")
    assert same_rows(opened.to_arrow().to_pylist(), wanted)
    with pytest.raises(InputError, match="overwrite=True"):
        export_lance(store, "t", f"{s3}/lance", storage_options=options)


def test_without_pylance_the_install_line_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(ImportError, match=r"pip install 'rayclip\[lance\]'"):
        export_lance(store, "t", str(tmp_path))
