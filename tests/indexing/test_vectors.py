import numpy as np
import pytest

from pipeline.indexing import vectors as v
from pipeline.store import Store
from pipeline.table import read_receipts, table_folder


def spans_of(store: Store) -> list[v.Span]:
    return v.lay_out(read_receipts(store, table_folder("t")).values())


def test_ids_follow_the_rows_of_the_source_whatever_the_order_of_completion(store: Store, vectors: np.ndarray):
    seen = list(v.stream(store, table_folder("t"), spans_of(store)))
    np.testing.assert_array_equal(np.concatenate([block for _, block, _ in seen]), vectors)
    assert [base for base, _, _ in seen] == np.cumsum([0, *(len(block) for _, block, _ in seen)])[:-1].tolist()
    numbers = [int(row_id.as_py().removeprefix("row-")) for _, _, row_ids in seen for row_id in row_ids]
    assert numbers == sorted(numbers)
    assert all(number % 10 for number in numbers)


@pytest.mark.parametrize("parts", [1, 3, 8, 1000])
def test_groups_are_consecutive_and_even(store: Store, parts: int):
    spans = spans_of(store)
    groups = v.divide(spans, parts)
    assert [span for group in groups for span in group] == spans
    assert len(groups) == min(parts, len(spans))
    if parts < len(spans):
        assert max(sum(span.rows for span in group) for group in groups) <= 2000 / parts + 2 * 150


@pytest.mark.parametrize("wanted", [1, 7, 333, 2000, 9999])
def test_a_draw_is_distinct_seeded_and_spread_over_units(store: Store, wanted: int):
    spans = spans_of(store)
    drawn = v.draw_rows(spans, wanted, seed=3)
    assert len(set(drawn.tolist())) == len(drawn) == min(wanted, 2000)
    np.testing.assert_array_equal(drawn, v.draw_rows(spans, wanted, seed=3))
    for span in spans:
        mine = ((drawn >= span.base) & (drawn < span.base + span.rows)).sum()
        assert abs(mine - span.rows * min(1, wanted / 2000)) <= 1


def test_take_reads_the_vectors_of_the_ids(store: Store, vectors: np.ndarray):
    spans = spans_of(store)
    ids = v.draw_rows(spans, 50, seed=1)
    target = np.empty((len(ids), vectors.shape[1]), np.float32)
    np.testing.assert_array_equal(v.take(store, table_folder("t"), spans, ids, target), vectors[ids])


def test_what_is_added_follows_behind_and_what_stays_keeps_its_ids(store: Store):
    spans = spans_of(store)
    receipts = [span.receipt for span in spans]
    kept, new = v.changes(spans[2:], receipts, end=5000)  # the first two shall be new
    assert kept == spans[2:]
    assert [span.receipt for span in new] == receipts[:2]
    assert [span.base for span in new] == [5000, 5000 + spans[0].rows]
    kept, new = v.changes(spans, receipts[3:], end=5000)
    assert (kept, new) == (spans[3:], [])
    assert v.divide(v.lay_out(receipts[:4], 7000), 2)[1][0].base > 7000
