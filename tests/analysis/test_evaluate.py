"""Golden queries over a real index whose lists lose something, and over the demo."""

from collections.abc import Iterator

import faiss
import numpy as np
import pyarrow as pa
import pytest

import pipeline
from jobs.demo.figures import HELD_OUT, caption
from pipeline.analysis.evaluate import Evaluation, compare, evaluate, metric_names
from pipeline.analysis.golden import read_golden
from pipeline.errors import InputError
from pipeline.indexing.exact import Exact, Selection
from pipeline.indexing.index import Index
from pipeline.session import Session
from tests.conftest import DEMO_MODEL


class Opened:
    """An index of made-up rows, searched in one of its sixteen lists, as an OpenIndex is."""

    def __init__(self, rows: int = 800, gone: int = 0) -> None:
        rng = np.random.default_rng(0)
        vectors = rng.normal(size=(rows, 8)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        whole = faiss.index_factory(8, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
        whole.train(vectors)
        whole.add(vectors)
        live = None if not gone else Selection.of(np.arange(gone, rows), rows)
        self.index = Index(whole, Exact([vectors]), nprobe=1, live=live)
        self.vectors, self.whole = vectors, whole
        self.row_ids = pa.chunked_array([[f"row-{number}" for number in range(rows)]], pa.large_string())
        self.card = type("Card", (), {"table": "t", "space": "s", "version": "v", "ntotal": rows - gone})

    def search(self, xq: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        return self.index.search(xq, min(k, self.card.ntotal), exact=exact)


def asked(opened: Opened, queries: int = 40) -> tuple[list[dict], np.ndarray]:
    """Queries near rows; the ten nearest are right, the nearest most of all."""
    rng = np.random.default_rng(1)
    xq = opened.vectors[rng.integers(len(opened.vectors), size=queries)] + 0.1 * rng.normal(size=(queries, 8))
    xq = (xq / np.linalg.norm(xq, axis=1, keepdims=True)).astype(np.float32)
    nearest = np.argsort(-(xq @ opened.vectors.T), axis=1)[:, :10]
    rows = [
        {"query_id": f"q{q}", "query_vector": xq[q].tolist(), "relevant_id": f"row-{row}", "relevance_grade": 10 - rank,
         "half": "first" if q < queries // 2 else "second"}
        for q in range(queries)
        for rank, row in enumerate(nearest[q])
    ]  # fmt: skip
    return rows, xq


def test_what_the_index_loses_is_told_from_what_the_model_does_not_find():
    opened = Opened()
    rows, xq = asked(opened)
    found = evaluate(read_golden(rows, ["half"]), xq, opened, k=10)
    assert found.exact.mean["recall@10"].mean == 1.0
    assert found.exact.mean["ndcg@10"].mean == pytest.approx(1.0)
    _, numbers = opened.index.search(xq, 10)
    _, exact = opened.index.search(xq, 10, exact=True)
    recall = np.mean([len(set(mine) & set(best)) / 10 for mine, best in zip(numbers, exact, strict=True)])
    assert 0.1 < recall < 0.99
    assert found.indexed.mean["recall@10"].mean == pytest.approx(recall)
    assert found.index_loss["recall@10"] == pytest.approx(1 - recall)
    assert (found.queries, found.relevant, found.missing) == (40, 400, 0)
    assert found.indexed.per_query.column_names[:2] == ["query_id", "half"]
    halves = found.indexed.cohorts["half"]
    both = (halves["first"]["recall@10"].mean + halves["second"]["recall@10"].mean) / 2
    assert both == pytest.approx(recall)
    assert (
        found.as_dict()["indexed"]["cohorts"]["half"]["first"]["recall@10"]["mean"] == halves["first"]["recall@10"].mean
    )


def test_rows_that_the_index_does_not_hold_are_counted_and_count_against_recall():
    opened = Opened(gone=400)
    rows, xq = asked(Opened())
    found = evaluate(read_golden(rows), xq, opened, k=10)
    gone = [row["relevant_id"] for row in rows if int(row["relevant_id"][4:]) < 400]
    assert found.missing == len(gone) > 0
    assert set(found.missing_ids) <= set(gone)
    assert found.exact.mean["recall@10"].mean == pytest.approx(1 - len(gone) / 400)


def test_recall_by_the_index_is_that_of_a_search_for_as_many_rows():
    opened = Opened()
    rows, xq = asked(opened)
    golden = read_golden(rows)
    ten, fifty = evaluate(golden, xq, opened, k=10), evaluate(golden, xq, opened, k=50)
    _, wider = opened.index.search(xq, 50)  # looks through more lists, and would say more
    _, exact = opened.index.search(xq, 10, exact=True)
    flattering = np.mean([len(set(mine[:10]) & set(best)) / 10 for mine, best in zip(wider, exact, strict=True)])
    assert fifty.indexed.mean["recall@10"] == ten.indexed.mean["recall@10"]
    assert fifty.indexed.mean["recall@10"].mean < flattering - 0.05
    assert fifty.exact.mean["recall@10"].mean == 1.0


def test_a_query_that_finds_nothing_right_has_zero_of_everything():
    opened = Opened()
    rows, xq = asked(opened, queries=1)
    for relevant_id, missing in (("row-of-another-table", ("row-of-another-table",)), (_farthest(opened, xq), ())):
        found = evaluate(read_golden([{**rows[0], "relevant_id": relevant_id}]), xq, opened, k=5)
        assert (found.queries, found.missing_ids) == (1, missing)
        for scores in (found.exact, found.indexed):
            assert tuple(scores.mean) == metric_names(5)
            assert {(value.mean, value.low, value.high) for value in scores.mean.values()} == {(0.0, None, None)}


def _farthest(opened: Opened, xq: np.ndarray) -> str:
    return f"row-{np.argmin(opened.vectors @ xq[0])}"


def test_a_cohort_has_a_name_of_its_own():
    opened = Opened()
    rows, xq = asked(opened, queries=1)
    for name in ("way", "recall@10", "query_id"):
        with pytest.raises(InputError, match=f"a cohort cannot be called {name}"):
            evaluate(read_golden([{**row, name: "a"} for row in rows[:1]], [name]), xq, opened)


def test_k_beyond_the_rows_and_other_numbers_of_vectors():
    opened = Opened(rows=300)
    rows, xq = asked(opened, queries=3)
    few = evaluate(read_golden(rows), xq, opened, k=1000)
    assert few.indexed.mean["recall@1000"].mean == few.exact.mean["recall@1000"].mean == 1.0
    assert few.exact.mean["precision@1000"].mean == pytest.approx(10 / 1000)
    for vectors, k in ((xq[:2], 10), (xq, 0)):
        with pytest.raises(InputError, match="wanted 3 vectors and k from 1 on"):
            evaluate(read_golden(rows), vectors, opened, k=k)


def test_systems_are_compared_query_by_query():
    opened, narrow = Opened(), Opened()
    rows, xq = asked(opened)
    golden = read_golden(rows)
    wide = Index(opened.whole, Exact([opened.vectors]), nprobe=16)
    narrow_found = evaluate(golden, xq, narrow)
    opened.index = wide
    wide_found = evaluate(golden, xq, opened)
    (change,) = compare(narrow_found, [wide_found])
    lost = narrow_found.index_loss["recall@10"]
    assert change["recall@10"].absolute == pytest.approx(lost)
    assert change["recall@10"].low > 0
    assert change["recall@10"].p_rank < 0.01
    assert change["recall@10"].p_rank_holm == change["recall@10"].p_rank
    two = compare(narrow_found, [wide_found, narrow_found])
    assert two[0]["recall@10"].p_rank_holm == 2 * change["recall@10"].p_rank
    assert two[1]["recall@10"].p_rank_holm == 1.0
    (same,) = compare(narrow_found, [wide_found], "exact")
    assert (same["recall@10"].absolute, same["recall@10"].p_rank) == (0.0, 1.0)
    fewer = evaluate(read_golden(rows[:-10]), xq[:-1], opened)
    with pytest.raises(InputError, match="asked other queries"):
        compare(narrow_found, [fewer])


@pytest.fixture(scope="module")
def db(demo_store: str) -> Iterator[Session]:
    with pipeline.connect(demo_store) as session:
        yield session


@pytest.fixture(scope="module")
def held_out(demo_rows: list[dict], db: Session) -> Evaluation:
    """Captions of compositions that the demo's model never saw, and all pictures of them."""
    unseen = {caption(composition) for composition in HELD_OUT}
    rejected = set(db.rejects("figures")["_row_id"].to_pylist())
    rows = [
        {"query_id": row["caption"], "query_text": row["caption"], "relevant_id": row["key"]}
        for row in demo_rows
        if row["caption"] in unseen and row["key"] not in rejected
    ]
    return db.evaluate(rows, "figures", k=10)


def test_the_demo_finds_what_its_model_never_saw(held_out: Evaluation, db: Session):
    assert held_out.queries > 50
    assert held_out.missing == 0
    card = db.describe("figures__" + held_out.space)["index"]
    loss = 1 - min(card["recall_at_10"].values())
    assert abs(held_out.index_loss["recall@10"]) <= loss + 1e-9
    assert held_out.exact.mean["recall@10"].mean > 0.8
    assert held_out.exact.mean["recall@10"].low > 0.7


def test_golden_queries_may_be_pictures_or_vectors(db: Session, demo_rows: list[dict]):
    rows = [row for row in demo_rows[1:40] if row["key"] != "figure-000040"]
    pictures = [{"query_id": r["key"], "query_image": r["image"], "relevant_id": r["key"]} for r in rows]
    by_picture = db.evaluate(pictures, k=3)
    assert by_picture.exact.mean["mrr@3"].mean == 1.0
    assert by_picture.kind == "image"
    vectors = db.encode_image_queries(str(DEMO_MODEL), [row["image"] for row in rows])
    given = [{**r, "query_vector": v.tolist()} for r, v in zip(pictures, vectors, strict=True)]
    by_vector = db.evaluate([{k: v for k, v in r.items() if k != "query_image"} for r in given], k=3)
    assert by_vector.exact.mean == by_picture.exact.mean
    with pytest.raises(InputError, match="query: has 1 dimensions"):
        db.evaluate([{"query_id": "a", "query_vector": [1.0], "relevant_id": "b"}])


def test_captions_and_classes_tell_pictures_apart(db: Session, demo_rows: list[dict]):
    found = db.evaluate_retrieval("caption")
    assert found.captions == len({row["caption"] for row in demo_rows if row["key"] in kept(db)})
    assert found.images == len(kept(db))
    assert found.text_to_image.recall[1] > 0.5
    assert found.text_to_image.recall[10] > found.text_to_image.recall[1]
    shapes = db.evaluate_zero_shot("shape", templates=["a {}"])  # of the source, not kept
    assert shapes.images == len(kept(db))
    assert shapes.top_1 > 0.6
    assert sorted(shapes.by_class["class"].to_pylist()) == sorted({row["shape"] for row in demo_rows})
    some = db.evaluate_zero_shot("colour", classes=["red", "blue"], templates=["a {} shape", "something {}"])
    assert some.left_out == sum(row["colour"] not in ("red", "blue") for row in demo_rows if row["key"] in kept(db))
    assert some.top_1 > 0.8
    with pytest.raises(InputError, match="no column 'nothing'"):
        db.evaluate_zero_shot("nothing")


def kept(db: Session) -> set[str]:
    return set(
        db.sql('SELECT _row_id FROM embeddings."' + db.tables()[0].table + '"').read_all()["_row_id"].to_pylist()
    )
