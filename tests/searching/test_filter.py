import datetime

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.searching.columns import Columns
from pipeline.searching.filter import MAX_CONDITIONS, MAX_DEPTH, Filter, select

N = 200


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "_row_id": pa.array([f"row-{i}" for i in range(N)], pa.large_string()),
            "_content_hash": pa.array(np.arange(N, dtype=np.uint64)),
            "colour": pa.array(rng.choice(["red", "blue", "green", None], N).tolist(), pa.string()),
            "number": pa.array([None if i % 7 == 0 else int(i % 50) for i in range(N)], pa.int32()),
            "share": pa.array(rng.random(N).tolist(), pa.float64()),
            "is_new": pa.array([bool(i % 3) for i in range(N)]),
            "day": pa.array([datetime.date(2026, 1, 1) + datetime.timedelta(days=i) for i in range(N)]),
            "tags": pa.array([["a"]] * N, pa.list_(pa.string())),
            "kind": pa.array(rng.choice(["x", "y"], N).tolist()).dictionary_encode(),
        }
    )


@pytest.fixture(scope="module", params=[1, 3])
def columns(request: pytest.FixtureRequest, table: pa.Table) -> Columns:
    batches = table.combine_chunks().to_batches(max_chunksize=-(-N // request.param))
    return Columns(tuple(batches), np.empty(0, np.uint64), np.empty(0, np.uint64))


CASES = {
    '{"column": "colour", "eq": "red"}': lambda r: r["colour"] == "red",
    '{"column": "colour", "ne": "red"}': lambda r: r["colour"] is not None and r["colour"] != "red",
    '{"column": "colour", "in": ["red", "blue"]}': lambda r: r["colour"] in ("red", "blue"),
    '{"column": "colour", "contains": "re"}': lambda r: r["colour"] is not None and "re" in r["colour"],
    '{"column": "colour", "is_null": true}': lambda r: r["colour"] is None,
    '{"column": "colour", "is_null": false}': lambda r: r["colour"] is not None,
    '{"column": "colour", "gte": "green"}': lambda r: r["colour"] is not None and r["colour"] >= "green",
    '{"column": "number", "lt": 10}': lambda r: r["number"] is not None and r["number"] < 10,
    '{"column": "number", "lte": 10}': lambda r: r["number"] is not None and r["number"] <= 10,
    '{"column": "number", "gt": 10}': lambda r: r["number"] is not None and r["number"] > 10,
    '{"column": "share", "gte": 0.5}': lambda r: r["share"] >= 0.5,
    '{"column": "is_new", "eq": false}': lambda r: not r["is_new"],
    '{"column": "day", "gte": "2026-03-01"}': lambda r: r["day"] >= datetime.date(2026, 3, 1),
    '{"column": "kind", "eq": "x"}': lambda r: r["kind"] == "x",
    '{"column": "_row_id", "in": ["row-3", "row-5", "row-none"]}': lambda r: r["_row_id"] in ("row-3", "row-5"),
    '{"not": {"column": "colour", "eq": "red"}}': lambda r: r["colour"] is not None and r["colour"] != "red",
    '{"all": [{"column": "colour", "eq": "red"}, {"column": "number", "gt": 20}]}': lambda r: (
        r["colour"] == "red" and r["number"] is not None and r["number"] > 20
    ),
    '{"any": [{"column": "colour", "eq": "red"}, {"column": "number", "gt": 20}]}': lambda r: (
        r["colour"] == "red" or (r["number"] is not None and r["number"] > 20)
    ),
    '{"all": [{"not": {"any": [{"column": "kind", "eq": "x"}, {"column": "share", "lt": 0.9}]}}]}': lambda r: (
        r["kind"] != "x" and r["share"] >= 0.9
    ),
    '{"column": "number", "gt": 1000}': lambda r: False,
    '{"column": "share", "gte": 0}': lambda r: True,
}


@pytest.mark.parametrize("text", CASES)
def test_a_filter_keeps_what_plain_python_keeps(text: str, columns: Columns, table: pa.Table):
    rows = table.to_pylist()
    kept = select(Filter.model_validate_json(text), columns).flags
    assert kept.tolist() == [bool(CASES[text](row)) for row in rows]


@pytest.mark.parametrize(
    "text",
    [
        '{"column": "weight", "eq": 1}',
        '{"column": "_content_hash", "eq": 1}',
        '{"column": "number", "eq": "many"}',
        '{"column": "number", "eq": 1.5}',
        '{"column": "number", "contains": "1"}',
        '{"column": "tags", "eq": "a"}',
        '{"column": "day", "gte": "yesterday"}',
        '{"column": "number", "in": [1, "two"]}',
    ],
)
def test_a_condition_that_does_not_fit_its_column_is_an_input_error(text: str, columns: Columns):
    with pytest.raises(InputError, match="filter: "):
        select(Filter.model_validate_json(text), columns)


def nested(depth: int) -> dict:
    return {"not": nested(depth - 1)} if depth > 1 else {"column": "a", "eq": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"column": "a"},
        {"eq": 1},
        {"column": "a", "eq": 1, "ne": 2},
        {"column": "a", "like": "b"},
        {"column": "a", "eq": [1]},
        {"column": "a", "in": []},
        {"all": []},
        {"all": [{"column": "a", "eq": 1}], "any": [{"column": "a", "eq": 1}]},
        {"all": [{"column": "a", "eq": 1}], "eq": 1},
        {"any": [{"all": [{"column": "a", "eq": 1}] * 8}] * 8},
        nested(MAX_DEPTH + 1),
    ],
)
def test_what_is_no_filter_is_refused(fields: dict):
    with pytest.raises(ValidationError):
        Filter.model_validate(fields)


def test_values_of_different_types_are_different_conditions():
    conditions = [Filter(column="a", eq=value) for value in (1, True, 1.0, "1")]
    assert len(set(conditions)) == 4
    assert conditions[0] == Filter(column="a", eq=1)


def test_the_deepest_and_the_widest_filters_are_taken():
    assert Filter.model_validate(nested(MAX_DEPTH)).depth == MAX_DEPTH
    wide = Filter.model_validate({"any": [{"column": "a", "eq": 1}] * (MAX_CONDITIONS - 1)})
    assert wide.conditions == MAX_CONDITIONS
