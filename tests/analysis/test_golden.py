from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.analysis.golden import read_golden
from pipeline.errors import InputError

ROWS = [
    {"query_id": "b", "query_text": "a star", "relevant_id": "1", "relevance_grade": 2, "kind": "shape"},
    {"query_id": "a", "query_text": "a ring", "relevant_id": "3", "relevance_grade": 1, "kind": None},
    {"query_id": "b", "query_text": "a star", "relevant_id": "2", "relevance_grade": 0, "kind": "shape"},
]


def test_every_form_gives_the_same_queries(tmp_path: Path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "golden.parquet")
    for source in (ROWS, pa.Table.from_pylist(ROWS), pd.DataFrame(ROWS), str(tmp_path / "golden.parquet")):
        golden = read_golden(source, ["kind"])
        assert golden.query_ids == ("b", "a")
        assert golden.queries == ["a star", "a ring"]
        assert golden.grades == ({"1": 2.0, "2": 0.0}, {"3": 1.0})
        assert golden.relevant == [{"1": 2.0}, {"3": 1.0}]
        assert golden.cohorts == {"kind": ("shape", "null")}


def test_an_object_store_has_them_too(s3: str):
    import s3fs

    with s3fs.S3FileSystem().open(f"{s3}/golden.parquet", "wb") as file:
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    assert len(read_golden(f"{s3}/golden.parquet")) == 2


def test_numbers_are_ids_and_grades_may_be_left_out():
    rows = [{"query_id": 7, "query_vector": [1.0, 0.0], "relevant_id": 12}]
    golden = read_golden(rows)
    assert (golden.query_ids, golden.grades, golden.kind) == (("7",), ({"12": 1.0},), "vector")
    assert golden.queries.dtype == np.float32
    assert golden.queries.shape == (1, 2)


def test_what_other_libraries_make_of_text_and_lists_is_taken():
    rows = pl.DataFrame({"query_id": ["a"], "query_text": ["x"], "relevant_id": ["1"]})
    for same in (rows, rows.to_arrow(), rows.to_pandas().astype("category")):
        assert read_golden(same).grades == ({"1": 1.0},)
    vectors = rows.drop("query_text").with_columns(query_vector=[0.5, 0.25])
    assert read_golden(vectors).queries.tolist() == [[0.5, 0.25]]


def row(**changed: object) -> dict:
    return {"query_id": "a", "query_text": "x", "relevant_id": "1", **changed}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "wanted one of query_text"),
        ([{"query_id": "a", "relevant_id": "1"}], "wanted one of query_text, query_image, query_vector; got none"),
        ([row(query_image=b"x")], "got query_text, query_image"),
        ([{"query_text": "x", "relevant_id": "1"}], "no column 'query_id'"),
        ([{"query_id": "a", "query_text": "x"}], "no column 'relevant_id'"),
        ([row(relevant_id=None), row()], "'relevant_id': 1 values are null"),
        ([row(query_text=None), row()], "'query_text': 1 values are null"),
        ([row(query_text=3)], "'query_text' is int64; wanted texts"),
        ([row(), row(query_text="y", relevant_id="2")], "query 'a': its rows have different queries"),
        ([row(), row()], "row '1' is judged twice"),
        ([row(relevance_grade=-1)], "wanted numbers from 0 on"),
        ([row(), row(relevant_id="2", relevance_grade=0)], "'relevance_grade': 1 values are null"),  # not left out
        ([row(relevant_id=1.0)], "'relevant_id' is double; wanted text or whole numbers"),
        ([row(relevant_id=True)], "'relevant_id' is bool; wanted text or whole numbers"),
        ([row(), row(relevant_id=2)], "list cannot be read as rows"),
        ([1, 2], "list cannot be read as rows: wanted dicts"),
        ([{"query_id": "a", "query_vector": ["x"], "relevant_id": "1"}], "'query_vector' is list<item: string>"),
        ([{"query_id": "a", "query_vector": [0.0], "relevant_id": "1"}], "query 'a': its vector is zero or not finite"),
        ([{"query_id": "a", "query_vector": [1.0, None], "relevant_id": "1"}], "query 'a': its vector is zero or not"),
        ([row(relevance_grade="good")], "'relevance_grade' is string; wanted numbers"),
        ([row(relevant_id=[1])], "wanted text or whole numbers"),
    ],
)
def test_what_is_wrong_is_named(rows: list[dict], said: str):
    with pytest.raises(InputError, match=said.replace("[", r"\[")):
        read_golden(rows)


def test_vectors_have_one_width_and_files_exist(tmp_path: Path):
    rows = [
        {"query_id": "a", "query_vector": [1.0], "relevant_id": "1"},
        {"query_id": "b", "query_vector": [1.0, 2.0], "relevant_id": "1"},
    ]
    with pytest.raises(InputError, match=r"vectors of \[1, 2\] dimensions"):
        read_golden(rows)
    with pytest.raises(InputError, match="cannot be read"):
        read_golden(str(tmp_path / "nothing.parquet"))
    with pytest.raises(InputError, match="no column 'kind'"):
        read_golden([row()], ["kind"])
    with pytest.raises(InputError, match="query_id is there more often"):
        read_golden(pa.table([["a"], ["a"], ["x"], ["1"]], names=["query_id", "query_id", "query_text", "relevant_id"]))
    with pytest.raises(InputError, match="ndarray cannot be read as rows"):
        read_golden(np.zeros(3))
    empty = pa.table({name: pa.array([], pa.string()) for name in ("query_id", "query_text", "relevant_id")})
    with pytest.raises(InputError, match="no queries"):
        read_golden(empty)
