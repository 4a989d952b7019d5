from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.config import ImportConfig, VerifyConfig
from pipeline.errors import IncompleteError, InputError
from pipeline.exchange.clip_retrieval import clip_retrieval_source, export_clip_retrieval
from pipeline.exchange.rows import rows_of
from pipeline.exchange.vectors_in import Imported, import_embeddings
from pipeline.store import Store
from pipeline.table import table_folder
from pipeline.upkeep.verify import verify
from tests.exchange.conftest import KEPT, D, same_rows, write_table


def taken_in(folder: Path | str, store: Path | str, d: int = D, **fields: object) -> Imported:
    source = clip_retrieval_source("clip", str(folder))
    return import_embeddings(
        ImportConfig(store=str(store), source=source, dimensions=d, layout="clip-retrieval", **fields)
    )


def layout(folder: Path, vectors: np.ndarray, number: int = 0, **columns: list) -> None:
    """Write a pair of files as clip-retrieval does, with pandas."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors)
    paths = [f"/pictures/{number}-{row}.jpg" for row in range(len(vectors))]
    pd.DataFrame({"image_path": paths, **columns}).to_parquet(folder / "metadata" / f"metadata_{number}.parquet")


@pytest.mark.parametrize("file_rows", [7, 50, 1000])
def test_files_have_the_rows_in_order_and_are_of_bounded_length(
    store: Store, tmp_path: Path, wanted: dict[str, dict], file_rows: int
):
    exported = export_clip_retrieval(store, "t", str(tmp_path / "out"), file_rows=file_rows)
    pairs = -(-len(wanted) // file_rows)
    assert (exported.rows, exported.files) == (len(wanted), 2 * pairs)
    digits = len(str(pairs - 1))
    found = []
    for number in range(pairs):
        vectors = np.load(tmp_path / "out" / "img_emb" / f"img_emb_{number:0{digits}d}.npy")
        metadata = pq.read_table(tmp_path / "out" / "metadata" / f"metadata_{number:0{digits}d}.parquet").to_pylist()
        assert (vectors.dtype, len(vectors)) == (np.float32, len(metadata))
        assert len(metadata) == file_rows or number == pairs - 1
        found += [{**row, schema.VECTOR: vector} for row, vector in zip(metadata, vectors, strict=True)]
    assert same_rows(found, wanted)
    ids = pa.Table.from_batches(rows_of(store, "t", [schema.ROW_ID]).batches())[schema.ROW_ID].to_pylist()
    assert [row["image_path"] for row in found] == ids
    assert list(found[0]) == ["image_path", *KEPT.names, schema.ROW_ID, schema.VECTOR]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert exported.bytes == on_disk


def test_what_is_exported_comes_in_again_as_it_was(store: Store, tmp_path: Path, wanted: dict[str, dict]):
    export_clip_retrieval(store, "t", str(tmp_path / "out"), file_rows=70)
    made = taken_in(tmp_path / "out", tmp_path / "store2", unit_rows=30)
    assert (made.rows, made.embedded, made.rejected) == (len(wanted), len(wanted), {})
    back = Store(str(tmp_path / "store2"))
    found = pa.Table.from_batches(rows_of(back, made.table).batches()).to_pylist()
    for row in found:
        right = wanted[row[schema.ROW_ID]]
        assert np.allclose(row[schema.VECTOR], right[schema.VECTOR], atol=1e-7)
        assert all(row[name] == right[name] for name in KEPT.names)
    assert len(found) == len(wanted)
    assert verify(VerifyConfig(store=back.url)).faults == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_what_clip_retrieval_wrote_is_a_table(tmp_path: Path, dtype: object):
    vectors = np.random.default_rng(0).standard_normal((9, 4)).astype(dtype)
    vectors[4] = 0
    layout(tmp_path / "in", vectors[:6], 0, caption=list("abcdef"), url=["http://x"] * 6)
    layout(tmp_path / "in", vectors[6:], 1, caption=list("ghi"), url=["http://y"] * 3)
    made = taken_in(tmp_path / "in", tmp_path / "store", 4, max_reject_fraction=0.5)
    assert (made.rows, made.rejected) == (9, {"zero_vector": 1})
    rows = pa.Table.from_batches(rows_of(Store(str(tmp_path / "store")), made.table).batches())
    assert rows["caption"].to_pylist() == list("abcdfghi")
    assert rows[schema.ROW_ID][0].as_py() == "/pictures/0-0.jpg"
    exact = vectors.astype(np.float64)[[0, 1, 2, 3, 5, 6, 7, 8]]
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert np.allclose(np.stack(rows[schema.VECTOR].to_pylist()), exact, atol=1e-6)


def test_vectors_of_captions_are_a_table_of_their_own_in_the_same_space(tmp_path: Path):
    pictures, captions = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    layout(tmp_path / "in", pictures)
    (tmp_path / "in" / "text_emb").mkdir()
    np.save(tmp_path / "in" / "text_emb" / "text_emb_0.npy", captions)
    made = [taken_in(tmp_path / "in", tmp_path / "store", 4, texts=texts) for texts in (False, True)]
    assert (made[0].space, made[1].table) == (made[1].space, f"clip.texts__{made[1].space}")
    for found, right in zip(made, (pictures, captions), strict=True):
        rows = pa.Table.from_batches(rows_of(Store(str(tmp_path / "store")), found.table).batches())
        unit = right / np.linalg.norm(right, axis=1, keepdims=True)
        assert np.allclose(np.stack(rows[schema.VECTOR].to_pylist()), unit, atol=1e-6)


def test_vectors_that_are_written_again_are_taken_in_again(tmp_path: Path):
    vectors = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    layout(tmp_path / "in", vectors)
    taken_in(tmp_path / "in", tmp_path / "store", 4)
    np.save(tmp_path / "in" / "img_emb" / "img_emb_0.npy", -vectors)
    for _ in range(2):
        made = taken_in(tmp_path / "in", tmp_path / "store", 4)
        rows = pa.Table.from_batches(rows_of(Store(str(tmp_path / "store")), made.table).batches())
        assert np.sign(rows[schema.VECTOR][0].as_py()[0]) == -np.sign(vectors[0, 0])
        assert rows.num_rows == 6
    assert verify(VerifyConfig(store=str(tmp_path / "store"))).faults == ()


BAD = {
    "another width": (lambda path: np.save(path, np.ones((5, 3), np.float32)), r"shape \(5, 3\); wanted \(5, 4\)"),
    "other rows": (lambda path: np.save(path, np.ones((4, 4), np.float32)), r"shape \(4, 4\); wanted \(5, 4\)"),
    "whole numbers": (lambda path: np.save(path, np.ones((5, 4), np.int32)), "wanted rows of float16"),
    "objects": (lambda path: np.save(path, np.full((5, 4), {}), allow_pickle=True), "wanted rows of float16"),
    "columns": (lambda path: np.save(path, np.asfortranarray(np.ones((5, 4), np.float32))), "wanted rows of float16"),
    "no array": (lambda path: path.write_bytes(b"nothing"), "is no NumPy file"),
    "none": (lambda path: path.unlink(), "is missing"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-8]), "is cut short"),
}


@pytest.mark.parametrize("way", list(BAD))
def test_vectors_that_do_not_belong_to_the_metadata_are_refused(tmp_path: Path, way: str):
    layout(tmp_path / "in", np.ones((5, 4), np.float32))
    harm, why = BAD[way]
    harm(tmp_path / "in" / "img_emb" / "img_emb_0.npy")
    with pytest.raises(InputError, match=rf"img_emb_0\.npy: .*{why}"):
        taken_in(tmp_path / "in", tmp_path / "store", 4)


def test_metadata_of_another_name_or_without_a_key_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no Parquet files at"):
        clip_retrieval_source("clip", str(tmp_path))
    layout(tmp_path, np.ones((5, 4), np.float32))
    (tmp_path / "metadata" / "metadata_0.parquet").rename(tmp_path / "metadata" / "other.parquet")
    with pytest.raises(InputError, match=r"wanted metadata/metadata_<number>\.parquet"):
        taken_in(tmp_path, tmp_path / "store", 4)
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "metadata" / "other.parquet")
    with pytest.raises(InputError, match="no column '_row_id' or 'image_path'; it has caption"):
        clip_retrieval_source("clip", str(tmp_path))


def test_a_place_that_is_taken_is_refused_unless_it_may_be_replaced(store: Store, tmp_path: Path):
    export_clip_retrieval(store, "t", str(tmp_path / "out"), file_rows=20)
    (tmp_path / "out" / "mine.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match="overwrite=True"):
        export_clip_retrieval(store, "t", str(tmp_path / "out"))
    export_clip_retrieval(store, "t", str(tmp_path / "out"), overwrite=True)
    left = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left == ["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet", "mine.txt"]


def test_a_damaged_table_ends_the_export(store: Store, tmp_path: Path):
    store.replace(f"{table_folder('t')}/{rows_of(store, 't').files[-1].path}", b"?")
    with pytest.raises(IncompleteError, match="is damaged"):
        export_clip_retrieval(store, "t", str(tmp_path / "out"))


def test_a_table_without_rows_is_one_pair_of_files_without_rows(empty_store: Store, tmp_path: Path):
    assert export_clip_retrieval(empty_store, "t", str(tmp_path / "out")).rows == 0
    assert np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy").shape == (0, D)
    assert pq.read_metadata(tmp_path / "out" / "metadata" / "metadata_0.parquet").num_rows == 0


def test_both_ways_over_a_far_store(s3: str, wanted: dict[str, dict]):
    far = Store(f"{s3}/clip-retrieval")
    write_table(far)
    export_clip_retrieval(far, "t", f"{far.url}/out", file_rows=70)
    made = taken_in(f"{far.url}/out", f"{far.url}/store2", unit_rows=50)
    assert made.embedded == len(wanted)
