"""Every step of the builder, compared with SQL or NumPy on the same rows."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
from PIL import Image

import pipeline
from pipeline.errors import InputError
from pipeline.session import Session
from tests.conftest import DEMO_MODEL, encoded

D = 64


class Oracle:
    """All embedded rows of a source with their vectors, and searches of them written out."""

    def __init__(self, store: str, source: pa.Table, key: str) -> None:
        files = sorted(str(path) for path in Path(store).glob("embeddings/*/data/**/*.parquet"))
        rows = pq.ParquetDataset(files, partitioning=None).read(["_row_id", "vector"])
        self.ids = np.array(rows["_row_id"].to_pylist(), object)
        self.vectors = np.stack(rows["vector"].to_pylist()).astype(np.float64)
        known = {value: place for place, value in enumerate(source[key].to_pylist())}
        columns = source.drop_columns(["image"]).take(pa.array([known[row_id] for row_id in self.ids]))
        self.rows = columns.to_pandas()
        self.rows.insert(0, "_row_id", self.ids)

    def scores(self, query: np.ndarray) -> np.ndarray:
        return self.vectors @ np.asarray(query, np.float64)

    def found(self, query: np.ndarray, k: int, where: str = "true") -> pd.DataFrame:
        rows = self.rows.assign(score=self.scores(query))  # noqa: F841 - DuckDB reads it
        return duckdb.sql(f"SELECT * FROM rows WHERE {where} ORDER BY score DESC, _row_id LIMIT {k}").df()


@pytest.fixture(scope="module")
def db(demo_store: str) -> Iterator[Session]:
    with pipeline.connect(demo_store) as session:
        yield session


@pytest.fixture(scope="module")
def oracle(demo_store: str, demo_rows: list[dict]) -> Oracle:
    return Oracle(demo_store, pa.Table.from_pylist(demo_rows), "key")


@pytest.fixture(scope="module")
def star(db: Session) -> np.ndarray:
    return db.encode_text_query(str(DEMO_MODEL), "a red star")


def ids(found: pa.Table) -> list[str]:
    return found["_row_id"].to_pylist()


def test_the_k_best_are_those_of_an_exact_search_with_the_sources_columns_but_for_bytes(
    db: Session, oracle: Oracle, star: np.ndarray
):
    found = db.search("figures", query=star, k=20).run()
    wanted = oracle.found(star, 20)
    assert ids(found) == list(wanted["_row_id"])
    assert np.allclose(found["similarity"].to_numpy(), wanted["score"], atol=2e-6)
    assert found.column_names == [
        "_row_id", "_source_id", "similarity", "key", "caption", "colour", "shape", "width", "height",
    ]  # fmt: skip
    assert found["width"].to_pylist() == list(wanted["width"])
    assert found["caption"].to_pylist() == list(wanted["caption"])
    assert set(found["_source_id"].to_pylist()) == {"figures"}


def test_a_text_a_picture_and_a_vector_ask_the_same(
    db: Session, star: np.ndarray, demo_rows: list[dict], tmp_path: Path
):
    assert ids(db.search("figures", text="a red star").run()) == ids(db.search("figures", query=star).run())
    row = demo_rows[5]
    (tmp_path / "picture").write_bytes(row["image"])
    by_picture = ids(db.search("figures", image=row["image"]).run())
    assert by_picture[0] == row["key"]
    assert ids(db.search("figures", image=tmp_path / "picture").run()) == by_picture
    with Image.open(tmp_path / "picture") as opened:
        assert ids(db.search("figures", image=opened).run()) == by_picture
    vector = db.encode_image_query(str(DEMO_MODEL), row["image"])
    assert ids(db.search("figures", query=vector).run()) == by_picture


def test_a_row_is_not_among_its_own_hits(db: Session, oracle: Oracle, demo_rows: list[dict]):
    key = demo_rows[5]["key"]
    vector = oracle.vectors[list(oracle.ids).index(key)]
    found = ids(db.search("figures", row_id=key, k=7).run())
    assert found == list(oracle.found(vector, 8)["_row_id"])[1:]


def test_k_beyond_the_rows_gives_them_all_and_k_of_zero_none(db: Session, oracle: Oracle, star: np.ndarray):
    found = db.search("figures", query=star, k=10_000).run()
    assert ids(found) == list(oracle.found(star, 10_000)["_row_id"])
    none = db.search("figures", query=star, k=0).run()
    assert none.num_rows == 0
    assert none.schema.equals(found.schema)
    with pytest.raises(InputError, match="k: wanted 0 to 10000, got -1"):
        db.search("figures", query=star, k=-1)


@pytest.mark.parametrize(
    "condition",
    [
        "colour = 'red'",  # kept
        "width > 150 AND colour IN ('red', 'blue')",  # kept, and of the source
        "_row_id LIKE '%7'",
        "caption = 'no such caption'",  # none
        "height >= 0",  # all
        "key = 'figure-000007'",  # one
        "COLOUR = 'red' OR Width < 80",  # as SQL spells
        "true",
        "false",
    ],
)
def test_a_filter_chooses_which_rows_are_ranked(db: Session, oracle: Oracle, star: np.ndarray, condition: str):
    found = db.search("figures", query=star, k=15).filter(condition).run()
    assert ids(found) == list(oracle.found(star, 15, condition)["_row_id"])


def test_several_filters_and_a_least_similarity_all_hold(db: Session, oracle: Oracle, star: np.ndarray):
    found = db.search("figures", query=star, k=40).filter("colour = 'red'").min_score(0.3).filter("width > 90").run()
    wanted = oracle.found(star, 40, "colour = 'red' AND width > 90 AND score >= 0.3")
    assert 0 < found.num_rows < 40
    assert ids(found) == list(wanted["_row_id"])


def test_a_filter_after_a_limit_chooses_among_the_rows_there_are(db: Session, oracle: Oracle, star: np.ndarray):
    first = db.search("figures", query=star, k=30).filter("colour = 'red'").limit(10).run()
    last = db.search("figures", query=star, k=30).limit(10).filter("colour = 'red'").run()
    assert first.num_rows == 10
    assert ids(last) == [row for row in oracle.found(star, 10)["_row_id"] if row in set(ids(first)) | set(ids(last))]
    assert set(last["colour"].to_pylist()) <= {"red"}
    cut = db.search("figures", query=star, k=30).limit(10).min_score(0.45).run()
    assert ids(cut) == list(oracle.found(star, 10, "score >= 0.45")["_row_id"])


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("nothing = 1", "nothing"),
        ("colour", "Could not convert"),
        ("colour = ", "syntax error"),
        ("1 = 1) UNION SELECT (1", "syntax error"),
        ("'a' IN (SELECT * FROM read_text('/etc/hostname'))", "no table function read_text"),
        ("count(*) > 1", "1 values for"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(db: Session, star: np.ndarray, condition: str, said: str):
    with pytest.raises(InputError, match=said):
        db.search("figures", query=star).filter(condition).run()


@pytest.mark.parametrize("descending", [False, True])
def test_sorting_is_stable(db: Session, oracle: Oracle, star: np.ndarray, descending: bool):
    found = db.search("figures", query=star, k=50).sort("colour", descending=descending).run()
    wanted = oracle.found(star, 50).sort_values("colour", ascending=not descending, kind="stable")
    assert ids(found) == list(wanted["_row_id"])


def test_limit_and_offset_count_rows_as_they_are(db: Session, oracle: Oracle, star: np.ndarray):
    best = list(oracle.found(star, 20)["_row_id"])
    search = db.search("figures", query=star, k=20)
    assert ids(search.offset(5).limit(3).run()) == best[5:8]
    assert ids(search.limit(5).offset(3).run()) == best[3:5]
    assert ids(search.limit(0).run()) == []
    assert ids(search.offset(99).run()) == []
    with pytest.raises(InputError, match="limit: wanted 0 or more"):
        search.limit(-1)


def test_select_keeps_columns_in_order_and_computes_others(db: Session, oracle: Oracle, star: np.ndarray):
    found = db.search("figures", query=star, k=6).select(["width", "_row_id"], area="width * height").run()
    assert found.column_names == ["width", "_row_id", "area"]
    wanted = oracle.found(star, 6)
    assert found["area"].to_pylist() == list(wanted["width"] * wanted["height"])
    with pytest.raises(InputError, match="select: no column 'nothing'"):
        db.search("figures", query=star).select("nothing").run()
    with pytest.raises(InputError, match="width twice"):
        db.search("figures", query=star).select("width", "width")


def test_bytes_and_vectors_come_when_they_are_named(
    db: Session, oracle: Oracle, star: np.ndarray, demo_rows: list[dict]
):
    found = db.search("figures", query=star, k=4).select("_row_id", "image", "vector").run()
    images = {row["key"]: row["image"] for row in demo_rows}
    assert found["image"].to_pylist() == [images[row_id] for row_id in ids(found)]
    places = [list(oracle.ids).index(row_id) for row_id in ids(found)]
    assert np.allclose(np.stack(found["vector"].to_pylist()), oracle.vectors[places], atol=1e-3)
    assert found.schema.field("vector").type == pa.list_(pa.float32(), D)
    longest = db.search("figures", query=star, k=4).sort("similarity").filter("octet_length(image) > 0").run()
    assert longest["image"].to_pylist() == found["image"].to_pylist()[::-1]


@pytest.mark.parametrize("how", ["left", "inner"])
def test_a_join_is_sqls(db: Session, oracle: Oracle, star: np.ndarray, how: str):
    other = pa.table(
        {
            "colour": ["red", "red", "blue", None],
            "width": [1, 2, 3, 4],  # a name that is taken
            "word": ["rouge", "rot", "bleu", "rien"],
        }
    )
    found = db.search("figures", query=star, k=25).join(other, on="colour", how=how).run()
    mine = oracle.found(star, 25).reset_index()  # noqa: F841 - DuckDB reads it
    wanted = duckdb.sql(
        f"SELECT _row_id, word, other.width AS width_right FROM mine {how} JOIN other USING (colour) "
        "ORDER BY mine.index, other.width"
    ).df()
    assert ids(found) == list(wanted["_row_id"])
    assert found["word"].to_pylist() == [None if pd.isna(word) else word for word in wanted["word"]]
    assert found["width_right"].to_pylist() == [None if pd.isna(w) else int(w) for w in wanted["width_right"]]
    assert found["width"].to_pylist() != found["width_right"].to_pylist()


def test_a_join_with_a_source_reads_only_what_matches(db: Session, star: np.ndarray, demo_rows: list[dict]):
    found = db.search("figures", query=star, k=3).join("figures", on="_row_id = key", columns=["height", "image"]).run()
    by_key = {row["key"]: row for row in demo_rows}
    assert found["height_right"].to_pylist() == [by_key[row_id]["height"] for row_id in ids(found)]
    assert found["image"].to_pylist() == [by_key[row_id]["image"] for row_id in ids(found)]
    with pytest.raises(InputError, match="source 'nothing'"):
        db.search("figures", query=star).join("nothing", on="key").run()
    with pytest.raises(InputError, match="join: column 'height' is int64"):
        db.search("figures", query=star).join("figures", on="caption = height").run()


def test_annotations_add_columns_that_later_steps_see(db: Session, star: np.ndarray):
    def longer(rows: pa.Table) -> list[int]:
        return [width + 1 for width in rows["width"].to_pylist()]

    found = db.search("figures", query=star, k=9).annotate("more", longer).filter("more > 100").sort("more").run()
    assert found["more"].to_pylist() == sorted(width + 1 for width in found["width"].to_pylist())
    assert 0 < found.num_rows < 9
    matrix = db.search("figures", query=star, k=2).annotate("pair", lambda rows: np.ones((2, 3), np.float32)).run()
    assert matrix["pair"].to_pylist() == [[1, 1, 1]] * 2
    with pytest.raises(InputError, match="annotate 'few': gives 1 values for 3 rows"):
        db.search("figures", query=star, k=3).annotate("few", lambda rows: [1]).run()
    assert db.search("figures", query=star, k=3).filter("false").annotate("more", longer).run().num_rows == 0


def test_a_model_annotates_with_the_vectors_of_the_pictures(db: Session, star: np.ndarray):
    found = db.search("figures", query=star, k=3).annotate("again", str(DEMO_MODEL)).select("vector", "again").run()
    assert np.allclose(np.stack(found["again"].to_pylist()), np.stack(found["vector"].to_pylist()), atol=2e-2)
    assert np.allclose(np.linalg.norm(np.stack(found["again"].to_pylist()), axis=1), 1, atol=1e-5)


def test_a_batch_answers_each_query_as_if_it_were_alone(db: Session, star: np.ndarray):
    texts = ["a red star", "a blue ring", "a green cross"]
    search = db.search("figures", text=texts, k=12).filter("width > 80").sort("width").limit(4)
    found = search.run()
    assert found["_query"].to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    for number, text in enumerate(texts):
        alone = db.search("figures", text=text, k=12).filter("width > 80").sort("width").limit(4).run()
        mine = found.filter(pa.compute.equal(found["_query"], number))
        assert ids(mine) == ids(alone)
    assert db.search("figures", text=[], k=3).run().num_rows == 0
    matrix = db.search("figures", query=np.stack([star, star]), k=2).run()
    assert ids(matrix)[:2] == ids(matrix)[2:]


def test_lists_are_fused_by_reciprocal_rank(db: Session, demo_rows: list[dict]):
    by_text, by_row = db.search("figures", text="a red star", k=30), db.search("figures", row_id="figure-000005", k=30)
    mine = ["figure-000007", "figure-000009"]
    found = by_text.fuse(by_row, mine, k=10).run()
    scores: dict[str, float] = {}
    for ranked in (ids(by_text.run()), ids(by_row.run())):
        for rank, row_id in enumerate(ranked, 1):
            scores[row_id] = scores.get(row_id, 0) + 1 / (60 + rank)
    for rank, row_id in enumerate(mine, 1):
        if row_id in scores:
            scores[row_id] += 1 / (60 + rank)
    assert ids(found) == sorted(scores, key=lambda row_id: (-scores[row_id], row_id))[:10]
    assert np.allclose(found["reciprocal_rank"].to_numpy(), [scores[row_id] for row_id in ids(found)])
    both = db.search("figures", text="a red star", image=demo_rows[5]["image"], k=30).select("_row_id").run()
    assert both.num_rows == 30
    with pytest.raises(InputError, match="as many queries each"):
        by_text.fuse(db.search("figures", text=["a", "b"])).run()


def test_results_come_in_the_form_that_is_asked_for(db: Session, star: np.ndarray, tmp_path: Path):
    class Hit(pydantic.BaseModel):
        caption: str
        similarity: float

    search = db.search("figures", query=star, k=3)
    rows = search.to_list()
    assert [hit.caption for hit in search.to_pydantic(Hit)] == [row["caption"] for row in rows]
    assert search.to_pandas()["caption"].to_list() == [row["caption"] for row in rows]
    assert search.to_polars()["caption"].to_list() == [row["caption"] for row in rows]
    sheet = search.show(tmp_path / "out" / "hits.png")
    with Image.open(tmp_path / "out" / "hits.png") as drawn:
        drawn.load()
        middle = np.asarray(drawn.convert("RGB"))[100, 90]
    assert sheet._repr_png_() == (tmp_path / "out" / "hits.png").read_bytes()
    assert tuple(middle) != (225, 225, 225)  # grey: there is no picture


def test_a_search_says_what_it_does(db: Session, star: np.ndarray):
    search = db.search("figures", query=star, k=5).filter("colour = 'red'").join("figures", on="key").limit(2)
    said = search.explain().splitlines()
    assert len(said) == 3
    assert "where colour = 'red'" in said[0]
    assert said[1:] == ["2. left join figures on key = key", "3. limit 2"]
    assert [": 2 rows" in line for line in search.explain(analyze=True).splitlines()] == [False, False, True]


def test_vectors_of_another_space_are_refused(db: Session, star: np.ndarray, demo_rows: list[dict]):
    fitted = db.encode_image_query(str(DEMO_MODEL), demo_rows[5]["image"], preprocess={"fit": "model"})
    with pytest.raises(InputError, match="query: is of space"):
        db.search("figures", query=fitted).run()
    short = db.encode_text_query(str(DEMO_MODEL), "a red star", encode={"dimensions": 32})
    assert short.shape == (32,)
    with pytest.raises(InputError, match="query: has 32 dimensions"):
        db.search("figures", query=short).run()
    # A text has no pixels: how pictures are fitted does not matter to it.
    text = db.encode_text_query(str(DEMO_MODEL), "a red star", preprocess={"fit": "model"})
    assert ids(db.search("figures", query=text).run()) == ids(db.search("figures", query=star).run())
    for bad in (np.zeros(D), np.full(D, np.nan)):
        with pytest.raises(InputError, match="zero or not finite"):
            db.search("figures", query=bad).run()


def test_what_is_not_there_is_named(db: Session, star: np.ndarray):
    with pytest.raises(InputError, match="'nothing': no table; there are figures__"):
        db.search("nothing", text="a")
    with pytest.raises(InputError, match="at least one of query, text, image, row_id"):
        db.search("figures")
    with pytest.raises(InputError, match="row 'nobody': not in table"):
        db.search("figures", row_id="nobody").run()
    with pytest.raises(InputError, match="image 0: not_an_image"):
        db.search("figures", image=b"a text").run()
    with pytest.raises(InputError, match="no column 'nothing'"):
        db.search("figures", query=star).sort("nothing").run()


@pytest.fixture(scope="module")
def odd(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, pa.Table]]:
    """Pictures that are alike, columns of our own names, nulls, and no key."""
    folder = tmp_path_factory.mktemp("odd")
    pictures = [encoded(number % 4) for number in range(24)]
    source = pa.table(
        {
            "image": pa.array(pictures, pa.binary()),
            "similarity": pa.array([number / 7 for number in range(24)]),
            "_query": pa.array([None if number % 3 else number for number in range(24)], pa.int64()),
            "size": pa.array([None if number % 5 == 0 else float(number % 6) for number in range(24)]),
        }
    )
    for number in range(2):
        pq.write_table(source.slice(12 * number, 12), folder / f"{number}.parquet", row_group_size=5)
    with pipeline.connect(str(folder / "store")) as session:
        session.add_source("odd", str(folder / "*.parquet"))
        session.generate_image_embeddings("odd", str(DEMO_MODEL), unit_rows=10)
        yield session, source


def test_ties_are_ordered_by_id_and_names_of_ours_are_told_apart(odd: tuple[Session, pa.Table]):
    db, source = odd
    found = db.search("odd", image=source["image"][1].as_py(), k=6).run()
    assert len(set(found["similarity"].to_pylist())) == 1
    assert ids(found) == sorted(ids(found))
    rows = [int(row_id.rpartition("#")[2]) + 12 * ("/1.parquet#" in row_id) for row_id in ids(found)]
    assert sorted(rows) == [1, 5, 9, 13, 17, 21]
    assert found["similarity_source"].to_pylist() == [source["similarity"][row].as_py() for row in rows]
    assert found["_query_source"].to_pylist() == [source["_query"][row].as_py() for row in rows]


@pytest.mark.parametrize("descending", [False, True])
def test_nulls_are_sorted_last_and_meet_no_condition(odd: tuple[Session, pa.Table], descending: bool):
    db, source = odd
    search = db.search("odd", image=source["image"][0].as_py(), k=24)
    sizes = search.sort("size", descending=descending).run()["size"].to_pylist()
    present = [size for size in source["size"].to_pylist() if size is not None]
    assert sizes == sorted(present, reverse=descending) + [None] * 5
    assert search.filter("size < 3").run().num_rows == sum(size < 3 for size in present)
    assert search.limit(24).filter("NOT size < 3").run().num_rows == sum(size >= 3 for size in present)
    assert search.filter("size IS NULL").run().num_rows == 5


def test_a_source_that_is_gone_leaves_what_the_table_keeps(odd: tuple[Session, pa.Table], tmp_path: Path):
    db, source = odd
    shard = Path(str(db.sources()["odd"].path)).parent / "1.parquet"
    shard.rename(tmp_path / "moved.parquet")
    try:
        found = db.search("odd", image=source["image"][1].as_py(), k=6).run()
        gone = ["/1.parquet#" in row_id for row_id in ids(found)]
        assert sum(gone) == 3
        assert [size is None for size in found["similarity_source"].to_pylist()] == gone
        with pytest.raises(InputError, match="cannot be read"):
            db.search("odd", image=source["image"][1].as_py()).filter("size > 0").run()
    finally:
        (tmp_path / "moved.parquet").rename(shard)
