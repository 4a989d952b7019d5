from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.errors import IncompleteError, InputError
from pipeline.exchange.atlas import X, Y, export_atlas
from pipeline.exchange.rows import rows_of
from pipeline.store import Store
from pipeline.table import table_folder
from tests.exchange.conftest import KEPT, D, same_rows, thumbnail, write_table


def test_one_file_has_ids_texts_vectors_and_coordinates(store: Store, tmp_path: Path, wanted: dict[str, dict]):
    exported = export_atlas(store, "t", str(tmp_path / "atlas.parquet"), project=True)
    assert (exported.rows, exported.files) == (len(wanted), 1)
    assert exported.bytes == (tmp_path / "atlas.parquet").stat().st_size
    found = pd.read_parquet(tmp_path / "atlas.parquet")  # as the Atlas reads it
    assert list(found.columns) == [schema.ROW_ID, *KEPT.names, schema.VECTOR, X, Y]
    vectors = np.stack(found[schema.VECTOR])
    assert vectors.shape == (len(wanted), D)
    assert same_rows(pq.read_table(tmp_path / "atlas.parquet").to_pylist(), wanted)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    spread = np.linalg.svd(centred, compute_uv=False)[:2] ** 2
    assert np.allclose(found[[X, Y]].to_numpy(np.float64).var(axis=0) * len(wanted), spread, rtol=1e-4)


def test_thumbnails_are_what_the_atlas_shows_as_pictures(tmp_path: Path, wanted: dict[str, dict]):
    store = Store(str(tmp_path / "pictures"))
    write_table(store, thumbnails=True)
    export_atlas(store, "t", str(tmp_path / "atlas.parquet"), project=True)
    found = pq.read_table(tmp_path / "atlas.parquet").to_pylist()
    assert same_rows(found, wanted)
    pictures = {row[schema.ROW_ID]: row[schema.THUMBNAIL] for row in found}
    right = {row_id: thumbnail(row_id) for row_id in wanted}
    assert pictures == {row_id: content and {"bytes": content, "path": None} for row_id, content in right.items()}


@pytest.mark.parametrize(("vectors", "project"), [(True, False), (False, True), (False, False)])
def test_vectors_and_coordinates_can_be_left_out(store: Store, tmp_path: Path, vectors: bool, project: bool):
    export_atlas(store, "t", str(tmp_path / "a.parquet"), vectors=vectors, project=project)
    names = pq.read_schema(tmp_path / "a.parquet").names
    assert (schema.VECTOR in names, X in names, Y in names) == (vectors, project, project)


def test_a_file_that_is_there_is_replaced_only_when_it_may_be(store: Store, tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"mine")
    with pytest.raises(InputError, match="overwrite=True"):
        export_atlas(store, "t", str(tmp_path / "a.parquet"))
    assert (tmp_path / "a.parquet").read_bytes() == b"mine"
    export_atlas(store, "t", str(tmp_path / "a.parquet"), overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == ["a.parquet"]
    with pytest.raises(InputError, match="wanted the name of a file in a folder"):
        export_atlas(store, "t", "s3://bucket")


def test_a_damaged_table_leaves_nothing_behind(store: Store, tmp_path: Path):
    store.replace(f"{table_folder('t')}/{rows_of(store, 't').files[-1].path}", b"?")
    with pytest.raises(IncompleteError, match="is damaged"):
        export_atlas(store, "t", str(tmp_path / "out" / "a.parquet"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_table_without_rows_and_a_url(empty_store: Store, s3: str):
    assert export_atlas(empty_store, "t", f"{s3}/atlas/a.parquet", project=True).rows == 0
    assert Store(f"{s3}/atlas").exists("a.parquet")
