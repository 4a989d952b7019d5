import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.exchange.unit_vectors import unit_vectors

ROWS = [[3.0, 4.0], None, [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [None, 1.0], [-2.0, 0.0]]


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda number: pa.list_(number, 2)])
def test_lists_of_any_type_become_vectors_of_norm_1_or_a_reason(number: pa.DataType, kind):
    rows = pa.array(ROWS, pa.list_(pa.float64())).cast(pa.list_(pa.float32()))
    column = pa.array(rows.to_pylist(), kind(pa.float32()))
    column = pa.array(ROWS, kind(number)) if number != pa.float16() else column.cast(kind(number))
    for part, start in ((column, 0), (column.slice(1), 1)):
        vectors, rejected = unit_vectors(part, 2)
        wanted = np.array([[0.6, 0.8], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [-1, 0]], np.float32)
        assert vectors.dtype == np.float32
        assert np.allclose(vectors, wanted[start:], atol=1e-7)
        reasons = {place + start: reason.value for place, (reason, _) in rejected.items()}
        assert reasons == {1: "null", **dict.fromkeys(range(2, 6), "zero_vector")}


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_numbers_that_cannot_be_squared_have_a_direction_too(scale: float):
    vectors, rejected = unit_vectors(pa.array([[3 * scale, 4 * scale]]), 2)
    assert np.allclose(vectors, [[0.6, 0.8]], atol=1e-7)
    assert not rejected


@pytest.mark.parametrize("rows", [[], [None, None]])
def test_no_vector_at_all_is_none(rows: list):
    vectors, rejected = unit_vectors(pa.array(rows, pa.list_(pa.float32())), 3)
    assert vectors.shape == (len(rows), 3)
    assert len(rejected) == len(rows)


def test_a_list_of_another_length_is_refused():
    with pytest.raises(InputError, match="a vector has 3 numbers, wanted 2"):
        unit_vectors(pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]]), 2)
