"""The verbs of a notebook that make and list things; searching and SQL have tests of their own."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline
from pipeline.errors import IncompleteError, InputError
from pipeline.session import Session
from tests.conftest import DEMO_MODEL

MODEL = str(DEMO_MODEL)


def write_pictures(folder: Path, rows: list[dict], name: str) -> None:
    """A shard of drawn pictures, as bytes and as paths of files beside it."""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for row in rows:
        (folder / "files" / row["key"]).write_bytes(row["image"] or b"")
    table = pa.table(
        {
            "key": [row["key"] for row in rows],
            "image": pa.array([row["image"] for row in rows], pa.binary()),
            "url": [f"files/{row['key']}" for row in rows],
            "caption": [row["caption"] for row in rows],
        }
    )
    pq.write_table(table, folder / name, row_group_size=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_rows: list[dict]) -> Path:
    folder = tmp_path_factory.mktemp("session")
    write_pictures(folder, demo_rows[:60], "a.parquet")
    return folder


@pytest.fixture(scope="module")
def db(local_ray: None, folder: Path) -> Iterator[Session]:
    with pipeline.connect(str(folder / "store")) as session:
        yield session


@pytest.fixture(scope="module")
def both(db: Session, folder: Path) -> tuple[str, str]:
    """Two tables of one source: by its bytes, and by the files that its URLs name."""
    db.add_source("pictures", str(folder / "*.parquet"), key="key", keep=["caption"])
    options = {"unit_rows": 20, "max_reject_fraction": 0.5}
    by_bytes = db.generate_image_embeddings("pictures", MODEL, **options)
    by_url = db.generate_image_embeddings("pictures", MODEL, image_column="url", **options)
    return by_bytes.table, by_url.table


def test_embedding_accounts_for_every_row(db: Session, both: tuple[str, str]):
    again = db.generate_image_embeddings("pictures", MODEL, unit_rows=20, max_reject_fraction=0.5)
    assert again.table == both[0]
    assert again.rows == 60 == again.embedded + sum(again.rejected.values())
    assert again.rejected == {"null": 1, "truncated": 1}
    assert (again.dimensions, again.space) == (64, db.tables()[0].space)
    rejects = db.rejects(both[0])
    assert rejects["_row_id"].to_pylist() == ["figure-000000", "figure-000040"]


def test_two_image_columns_lie_side_by_side_and_are_searched_by_name(
    db: Session, both: tuple[str, str], demo_rows: list[dict]
):
    assert [(table.table, table.image_column) for table in db.tables()] == [
        (both[1], "url"),
        (both[0], "image"),
    ]
    with pytest.raises(InputError, match="wanted table= or image_column= to choose one of"):
        db.search("pictures", text="a red star")
    picture = demo_rows[7]["image"]
    for query in ({"text": "a red star"}, {"image": picture}):
        found = [db.search("pictures", image_column=column, **query).run() for column in ("image", "url")]
        found.append(db.search("pictures", table=both[1], **query).run())
        assert found[0]["_row_id"].to_pylist() == found[1]["_row_id"].to_pylist() == found[2]["_row_id"].to_pylist()
        assert np.allclose(found[0]["similarity"].to_numpy(), found[1]["similarity"].to_numpy(), atol=1e-5)
    with pytest.raises(InputError, match="no table of its column 'nothing'"):
        db.search("pictures", image_column="nothing", text="a")


def test_a_refresh_embeds_what_is_new(db: Session, both: tuple[str, str], folder: Path, demo_rows: list[dict]):
    before = db.search("pictures", image_column="image", image=demo_rows[63]["image"], k=1).to_list()
    assert before[0]["_row_id"] != "figure-000063"
    write_pictures(folder, demo_rows[60:80], "b.parquet")
    refreshed = db.refresh(both[0])
    assert (refreshed.rows, refreshed.embedded) == (80, 78)
    after = db.search("pictures", image_column="image", image=demo_rows[63]["image"], k=1).to_list()
    assert after[0]["_row_id"] == "figure-000063"
    assert db.describe(both[0])["index"]["ntotal"] == 78
    assert db.describe("pictures")["rows"] == 80
    assert db.describe("pictures")["columns"]["caption"] == "string"
    assert sorted(db.describe("pictures")["tables"]) == sorted(both)


def test_an_index_can_be_left_and_made_later(db: Session, folder: Path, both: tuple[str, str]):
    made = db.generate_image_embeddings("pictures", MODEL, table="later", index=False, max_reject_fraction=0.5)
    assert made.index is None
    with pytest.raises(InputError, match="no index is published"):
        db.search("later", text="a red star").run()
    card = db.build_index("later", text_queries="none")
    assert card.ntotal == made.embedded
    assert db.search("later", text="a red star", k=3).run().num_rows == 3


def test_queries_are_encoded_alone_and_in_batches(db: Session, demo_rows: list[dict], tmp_path: Path):
    exact = {"encode": {"precision": "fp32"}}
    texts = db.encode_text_queries(MODEL, ["a red star", "a blue ring"], **exact)
    assert (texts.dtype, texts.shape) == (np.float32, (2, 64))
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    assert np.allclose(db.encode_text_query(MODEL, "a blue ring", **exact), texts[1], atol=1e-6)
    picture = demo_rows[7]["image"]
    (tmp_path / "picture.png").write_bytes(picture)
    pictures = [picture, tmp_path / "picture.png", Image.open(io.BytesIO(picture))]
    vectors = db.encode_image_queries(MODEL, pictures, **exact)
    assert np.allclose(vectors, vectors[0], atol=1e-5)
    assert np.allclose(db.encode_image_query(MODEL, picture, **exact), vectors[0], atol=1e-6)
    assert vectors.space != db.encode_image_query(MODEL, picture, preprocess={"fit": "model"}).space


def test_mistakes_are_named_before_any_work(db: Session, folder: Path):
    with pytest.raises(InputError, match="no Parquet files at"):
        db.add_source("empty", str(folder / "nothing" / "*.parquet"))
    with pytest.raises(InputError, match="name: String should match"):
        db.add_source("no name", str(folder / "*.parquet"))
    with pytest.raises(InputError, match="bad: unknown key"):
        db.add_source("pictures2", str(folder / "*.parquet"), bad=1)
    with pytest.raises(InputError, match="source 'unknown': the store knows pictures"):
        db.generate_image_embeddings("unknown", MODEL)
    with pytest.raises(InputError, match="unit_row: unknown key"):
        db.generate_image_embeddings("pictures", MODEL, unit_row=3)
    with pytest.raises(InputError, match="no such folder"):
        db.encode_text_query("./nothing", "a")
    with pytest.raises(InputError, match="image 0: not_an_image"):
        db.encode_image_query(MODEL, b"no picture")
    with pytest.raises(InputError, match="cannot be read"):
        db.encode_image_query(MODEL, folder / "nothing.png")
    with pytest.raises(InputError, match="wanted bytes, a picture of Pillow or a path, got int"):
        db.encode_image_query(MODEL, 3)


def test_too_many_rejects_end_a_run_and_leave_what_was_done(db: Session, folder: Path):
    with pytest.raises(IncompleteError, match="more than max_reject_fraction"):
        db.generate_image_embeddings("pictures", MODEL, table="strict", max_reject_fraction=0.0)


def test_vectors_go_out_and_come_in_again(db: Session, both: tuple[str, str], tmp_path: Path):
    out = db.export(both[0], str(tmp_path / "clip"), "clip-retrieval")
    rows = db.describe(both[0])["embedded"]
    assert out.rows == rows
    back = db.import_embeddings("back", str(tmp_path / "clip"), 64, layout="clip-retrieval", keep=["caption"])
    assert (back.rows, back.embedded, back.rejected) == (rows, rows, {})
    query = np.asarray(db.encode_text_query(MODEL, "a red star"))  # which knows of no space
    found = [db.search(name, query=query, k=5).run()["_row_id"].to_pylist() for name in (back.table, both[0])]
    assert found[0] == found[1]
    assert db.refresh("back").index == back.index
    with pytest.raises(InputError, match="no checkpoint is known of these vectors"):
        db.search("back", text="a red star").run()
    with pytest.raises(InputError, match="wanted a layout of lance, clip-retrieval, atlas, got 'csv'"):
        db.export(both[0], str(tmp_path / "csv"), "csv")


def test_folders_of_pictures_are_sources(db: Session, demo_rows: list[dict], tmp_path: Path):
    for row in demo_rows[1:9]:
        path = tmp_path / "pictures" / row["shape"] / f"{row['key']}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    made = db.add_pictures("loose", str(tmp_path / "pictures"))
    assert made.rows == 8
    with pipeline.connect(db.store.url) as later:  # which was not told where the pictures are
        embedded = later.generate_image_embeddings("loose", MODEL)
    assert (embedded.rows, embedded.embedded) == (8, 8)
    hit = db.search("loose", image=demo_rows[3]["image"], k=1).to_list()[0]
    assert hit["key"] == f"{demo_rows[3]['shape']}/{demo_rows[3]['key']}.png"
    assert hit["label"] == demo_rows[3]["shape"]
