from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.config import EmbedConfig, EncodeConfig, PreprocessConfig, SourceConfig
from pipeline.embedding.run import embed
from pipeline.errors import IncompleteError, InputError
from pipeline.store import Store
from pipeline.table import read_receipts, read_record, table_folder
from tests.conftest import DEMO_MODEL, encoded, write_shard

pytestmark = pytest.mark.usefixtures("local_ray")

REASONS = {"empty": 1, "not_an_image": 1, "null": 2, "truncated": 1}


def config(corpus: Path, store: object, **fields: object) -> EmbedConfig:
    source = {"name": "s", "path": str(corpus), "key_column": "key", **fields.pop("source", {})}
    return EmbedConfig(
        **{
            "store": str(store),
            "table": "t",
            "model": str(DEMO_MODEL),
            "unit_rows": 20,
            "encode": EncodeConfig(precision="fp32"),
            "source": SourceConfig(**source),
            **fields,
        }
    )


def rows_of(store: Path, kind: str = "data") -> pa.Table:
    return ds.dataset(store / table_folder("t") / kind, partitioning="hive").to_table()


def test_every_row_is_embedded_or_rejected_and_any_reader_sees_exactly_those(corpus: Path, tmp_path: Path):
    store = tmp_path / "store"
    report = embed(config(corpus, store, source={"keep_columns": ("label", "number")}))
    assert (report.rows_in, report.embedded, report.rejected, report.reasons) == (120, 115, 5, REASONS)
    keys = {f"row-{row:05d}" for row in range(120)}
    data, rejects = rows_of(store), rows_of(store, "rejects")
    good, bad = data[schema.ROW_ID].to_pylist(), rejects[schema.ROW_ID].to_pylist()
    assert len(good) + len(bad) == 120
    assert set(good) | set(bad) == keys
    assert data.column_names == ["_row_id", "_source_id", "_model_id", "vector", "label", "number", "unit"]
    assert data.schema.field("vector").type == pa.list_(pa.float32(), 64)
    assert data["number"].to_pylist() == [int(key.removeprefix("row-")) for key in good]
    assert set(data["_source_id"].to_pylist()) == {"s"}
    vectors = data["vector"].combine_chunks().flatten().to_numpy().reshape(-1, 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    asked = duckdb.sql(f"SELECT count(*), count(DISTINCT _row_id) FROM '{store}/embeddings/t/data/**/*.parquet'")
    assert asked.fetchall() == [(115, 115)]
    assert set(rejects["_status"].to_pylist()) == {"error"}
    errors = dict(zip(rejects["row"].to_pylist(), rejects["_error"].to_pylist(), strict=True))
    assert errors[3] == "Null or missing image input"
    assert errors[29].startswith("Failed to decode image at row 29: ")


def test_each_vector_is_that_of_its_own_image(corpus: Path, tmp_path: Path):
    import open_clip
    import torch
    from PIL import Image

    embed(config(corpus, tmp_path / "store"))
    model = open_clip.create_model(f"local-dir:{DEMO_MODEL}").eval()
    images = dict(zip(*(pq.read_table(corpus)[name].to_pylist() for name in ("key", "image")), strict=True))
    data = rows_of(tmp_path / "store")
    for row in data.slice(0, 115).to_pylist()[::6]:
        import io

        picture = Image.open(io.BytesIO(images[row["_row_id"]])).convert("RGB")
        square = Image.new("RGB", (80, 80), "white")
        square.paste(picture, (0, 10))
        pixels = np.asarray(square.resize((64, 64), Image.BICUBIC)).transpose(2, 0, 1).copy()
        with torch.inference_mode():
            expected = model.encode_image((torch.from_numpy(pixels)[None].float() / 255 - 0.5) / 0.5, normalize=True)
        assert float(expected[0] @ torch.tensor(row["vector"])) >= 0.9999


def test_a_second_run_skips_everything_and_changes_nothing(corpus: Path, tmp_path: Path):
    first = embed(config(corpus, tmp_path / "store"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    second = embed(config(corpus, tmp_path / "store"))
    assert (second.units_skipped, second.rows_now) == (first.units, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


def test_a_new_shard_is_embedded_alone_and_a_rewritten_one_takes_the_place_of_its_old_self(
    corpus: Path, tmp_path: Path
):
    store = tmp_path / "store"
    embed(config(corpus, store))
    write_shard(corpus / "shard-3.parquet", 500, [encoded(900 + i) for i in range(10)])
    assert embed(config(corpus, store)).rows_now == 10
    write_shard(corpus / "shard-1.parquet", 700, [encoded(800 + i) for i in range(30)], group_rows=10)
    report = embed(config(corpus, store))
    assert (report.rows_now, report.rows_in) == (30, 120)
    kept = rows_of(store)["_row_id"].to_pylist()
    assert sorted(kept) == sorted(
        f"row-{row:05d}" for row in [*range(40), *range(700, 730), *range(80, 120), *range(500, 510)]
    )


def test_files_that_no_receipt_names_are_gone_after_a_run(corpus: Path, tmp_path: Path):
    store = tmp_path / "store"
    embed(config(corpus, store))
    data = store / table_folder("t") / "data"
    orphan = next(data.rglob("*.parquet"))
    (orphan.parent / "attempt.parquet").write_bytes(orphan.read_bytes())
    assert rows_of(store).num_rows > 115
    embed(config(corpus, store))
    assert rows_of(store).num_rows == 115


def test_partitions_are_folders_above_the_units(corpus: Path, tmp_path: Path):
    store = tmp_path / "store"
    embed(config(corpus, store, source={"keep_columns": ("label", "number")}, partition_by=("label",)))
    rows = rows_of(store)
    assert rows.num_rows == 115
    for key, label in zip(rows["_row_id"].to_pylist(), rows["label"].to_pylist(), strict=True):
        assert label == ("cat", "dog", None)[int(key.removeprefix("row-")) % 3]


def test_references_and_structs_of_hugging_face_are_read(tmp_path: Path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(encoded(i))
    paths = [f"{i}.jpg" for i in range(4)] + ["missing.jpg", "http://127.0.0.1:9/x.jpg", None]
    pq.write_table(pa.table({"image": paths}), folder / "a.parquet")
    report = embed(config(folder, tmp_path / "one", source={"key_column": None}, max_reject_fraction=0.9))
    assert report.reasons == {"fetch_denied": 1, "fetch_not_found": 1, "null": 1}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pairs = [{"bytes": encoded(i), "path": "x"} if i % 2 else {"bytes": None, "path": f"{i}.jpg"} for i in range(4)]
    pq.write_table(pa.table({"image": pa.array(pairs, kind)}), folder / "a.parquet")
    embed(config(folder, tmp_path / "two", source={"key_column": None}))
    first, second = (rows_of(tmp_path / name).sort_by("_row_id") for name in ("one", "two"))
    assert (
        first["_row_id"].to_pylist() == second["_row_id"].to_pylist() == [f"{folder}/a.parquet#{i}" for i in range(4)]
    )
    np.testing.assert_allclose(*(np.array(rows["vector"].to_pylist()) for rows in (first, second)), atol=1e-5)


def test_source_and_store_on_s3(corpus: Path, tmp_path: Path, s3: str):
    import fsspec

    fs = fsspec.filesystem("s3")
    fs.put(f"{corpus}/", f"{s3}/corpus/", recursive=True)
    report = embed(config(corpus, f"{s3}/store", source={"path": f"{s3}/corpus/*.parquet"}))
    assert (report.rows_in, report.embedded, report.reasons) == (120, 115, REASONS)
    store = Store(f"{s3}/store")
    receipts = read_receipts(store, table_folder("t"))
    named = {file.path for receipt in receipts.values() for file in receipt.data}
    assert {f"data/{name}" for name in store.files(f"{table_folder('t')}/data")} == named
    assert embed(config(corpus, f"{s3}/store", source={"path": f"{s3}/corpus/*.parquet"})).rows_now == 0


def test_one_huge_row_group_is_one_unit(tmp_path: Path):
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [encoded(i, 64, 64) for i in range(300)], group_rows=1000)
    report = embed(config(tmp_path / "corpus", tmp_path / "store"))
    assert (report.units, report.embedded) == (1, 300)


def test_a_corpus_of_rejects_only_stays_accounted_for(tmp_path: Path):
    write_shard(tmp_path / "corpus" / "a.parquet", 0, [b"text"] * 12)
    with pytest.raises(IncompleteError, match="12 of 12 rows rejected"):
        embed(config(tmp_path / "corpus", tmp_path / "store"))
    report = embed(config(tmp_path / "corpus", tmp_path / "store", max_reject_fraction=1.0))
    assert (report.rows_now, report.rejected, report.embedded) == (0, 12, 0)


def test_more_rejects_than_allowed_fail_the_run_and_keep_what_was_embedded(corpus: Path, tmp_path: Path):
    with pytest.raises(IncompleteError, match=r"5 of 120 rows rejected .* max_reject_fraction 0\.01"):
        embed(config(corpus, tmp_path / "store", max_reject_fraction=0.01))
    assert rows_of(tmp_path / "store").num_rows == 115


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encode": EncodeConfig(precision="fp32", dimensions=32)}, "has space"),
        ({"preprocess": PreprocessConfig(decode="scaled")}, "has space"),
        ({"unit_rows": 21}, "has unit_rows 20, wanted 21"),
        ({"source": {"name": "other"}}, "has source 's', wanted 'other'"),
        ({"source": {"keep_columns": ("label",)}}, "has kept"),
        ({"source": {"keep_columns": ("image",)}, "partition_by": ("image",)}, "'image' is binary; wanted text"),
    ],
)
def test_a_table_never_mixes(corpus: Path, tmp_path: Path, changes: dict, said: str):
    embed(config(corpus, tmp_path / "store"))
    with pytest.raises(InputError, match=said):
        embed(config(corpus, tmp_path / "store", **changes))


def test_dimensions_shorten_the_vectors(corpus: Path, tmp_path: Path):
    embed(config(corpus, tmp_path / "store", encode=EncodeConfig(precision="fp32", dimensions=16)))
    assert rows_of(tmp_path / "store").schema.field("vector").type == pa.list_(pa.float32(), 16)
    assert read_record(Store(str(tmp_path / "store")), "t").d == 16
    with pytest.raises(InputError, match="wanted at most 64, got 65"):
        embed(config(corpus, tmp_path / "other", encode=EncodeConfig(dimensions=65)))


def test_nothing_is_written_before_keys_are_checked(corpus: Path, tmp_path: Path):
    write_shard(corpus / "shard-9.parquet", 5, [encoded(1)])
    with pytest.raises(InputError, match="row-00005"):
        embed(config(corpus, tmp_path / "store"))
    assert list((tmp_path / "store").rglob("*.parquet")) == []


def test_workers_write_where_the_driver_commits_wherever_they_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # Ray's workers were started elsewhere
    embed(config(corpus, "relative"))
    assert rows_of(tmp_path / "relative").num_rows == 115
