import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import FetchConfig, IndexConfig
from pipeline.embedding.fetch import fetch_spec
from pipeline.embedding.run import embed
from pipeline.errors import InputError
from pipeline.indexing.run import build
from pipeline.searching.columns import Columns, open_columns
from pipeline.searching.index import open_index
from pipeline.searching.pictures import Pictures
from pipeline.store import Store
from pipeline.table import read_record
from tests.conftest import encoded, write_shard
from tests.embedding.test_run import config

pytestmark = pytest.mark.usefixtures("local_ray", "light_encoder")


def behind(store_url: Path) -> tuple[Columns, Pictures]:
    store = Store(str(store_url))
    index, record = open_index(store, "t"), read_record(store, "t")
    return open_columns(store, index, record), Pictures(store, index, record, fetch_spec(FetchConfig(), 1 << 20))


@pytest.mark.parametrize("key_column", ["key", None])
def test_every_id_leads_to_its_own_columns_and_picture(corpus: Path, tmp_path: Path, key_column: str | None):
    embed(config(corpus, tmp_path / "s", source={"keep_columns": ("number",), "key_column": key_column}))
    build(IndexConfig(store=str(tmp_path / "s")))
    images = dict(zip(*(pq.read_table(corpus)[name].to_pylist() for name in ("number", "image")), strict=True))
    columns, pictures = behind(tmp_path / "s")
    for number in range(0, 115, 9):
        (kept,) = columns.rows([number], ["_row_id", "number"])
        assert pictures.of(number) == images[kept["number"]]
        row_id = kept["_row_id"]
        assert columns.numbers_of(row_id) == [number]
        assert row_id.endswith(f"{kept['number']:05d}" if key_column else f"#{kept['number'] % 40}")


@pytest.mark.parametrize("kept", [("label",), ("label", "number")])
def test_partition_columns_are_read_off_the_folders(corpus: Path, tmp_path: Path, kept: tuple[str, ...]):
    embed(config(corpus, tmp_path / "s", source={"keep_columns": kept}, partition_by=("label",)))
    build(IndexConfig(store=str(tmp_path / "s")))
    columns, _ = behind(tmp_path / "s")
    for number in range(0, 115, 9):
        (found,) = columns.rows([number], ["_row_id", *kept])
        row = int(found.pop("_row_id").removeprefix("row-"))
        assert found == dict(zip(kept, (("cat", "dog", None)[row % 3], row), strict=False))


def test_rows_of_a_shard_that_was_embedded_anew_lose_their_columns_and_nothing_else(corpus: Path, tmp_path: Path):
    chosen = config(corpus, tmp_path / "s", source={"keep_columns": ("number",)})
    embed(chosen)
    build(IndexConfig(store=str(tmp_path / "s")))
    write_shard(corpus / "shard-0.parquet", 900, [encoded(i) for i in range(40)], group_rows=10)
    embed(chosen)
    columns, pictures = behind(tmp_path / "s")
    assert columns.rows([0, 114], ["_row_id", "number"]) == [
        {"_row_id": "row-00000", "number": None},
        {"_row_id": "row-00119", "number": 119},
    ]
    assert pictures.of(0) is None  # its key is gone


def test_small_pictures_are_kept_where_they_are_asked_for(corpus: Path, tmp_path: Path):
    chosen = config(corpus, tmp_path / "s", source={"keep_columns": ("number",)}, preprocess={"thumbnail_px": 32})
    embed(chosen)
    build(IndexConfig(store=str(tmp_path / "s")))
    images = dict(zip(*(pq.read_table(corpus)[name].to_pylist() for name in ("number", "image")), strict=True))

    def check() -> None:
        columns, pictures = behind(tmp_path / "s")
        for number in range(0, 115, 19):
            (kept,) = columns.rows([number], ["number"])
            small = Image.open(io.BytesIO(pictures.thumbnail(number)))
            assert (small.format, small.size) == ("WEBP", (32, 24))
            wanted = Image.open(io.BytesIO(images[kept["number"]])).convert("RGB").resize((32, 24))
            assert np.abs(np.asarray(small, np.int16) - np.asarray(wanted, np.int16)).mean() < 8

    check()
    shard = corpus / "shard-0.parquet"
    pq.write_table(pq.read_table(shard), shard, row_group_size=20)  # the same images, whose vectors are known
    embed(chosen)
    build(IndexConfig(store=str(tmp_path / "s")))
    check()
    with pytest.raises(InputError, match="has thumbnail_px 32, wanted None"):
        embed(config(corpus, tmp_path / "s", source={"keep_columns": ("number",)}))
