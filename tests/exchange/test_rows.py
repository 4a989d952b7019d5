import threading
import time

import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.errors import IncompleteError, InputError
from pipeline.exchange.ahead import ahead
from pipeline.exchange.rows import rows_of
from pipeline.indexing.vectors import lay_out, stream
from pipeline.store import Store
from pipeline.table import live_receipts, read_receipts, receipt_path, table_folder
from tests.exchange.conftest import same_rows, write_table


def test_rows_come_in_the_order_of_vector_ids_with_their_partitions(store: Store, wanted: dict[str, dict]):
    rows = rows_of(store, "t")
    found = pa.Table.from_batches(rows.batches())
    assert found.schema == rows.schema
    assert rows.count == found.num_rows
    assert same_rows(found.to_pylist(), wanted)
    spans = lay_out(live_receipts(read_receipts(store, table_folder("t")).values()).values())
    ids = [row_id for _, _, ids in stream(store, table_folder("t"), spans) for row_id in ids.to_pylist()]
    assert found[schema.ROW_ID].to_pylist() == ids
    assert found.schema.field("folder").type == pa.int64()


def test_columns_are_chosen_by_name_and_in_order(store: Store):
    rows = rows_of(store, "t", ["folder", schema.ROW_ID])
    assert next(batch.schema.names for batch in rows.batches()) == ["folder", schema.ROW_ID]
    with pytest.raises(InputError, match="no column 'nothing'; there are _row_id"):
        rows_of(store, "t", ["nothing"])
    with pytest.raises(InputError, match=r"table u: has no table.json"):
        rows_of(store, "u")


def test_a_file_that_no_receipt_names_is_no_part_of_the_table(store: Store, wanted: dict[str, dict]):
    receipt = read_receipts(store, table_folder("t"))["b-100"]
    store.remove(receipt_path(table_folder("t"), receipt.unit))
    rows = rows_of(store, "t")
    assert rows.count == len(wanted) - receipt.embedded
    assert sum(batch.num_rows for batch in rows.batches()) == rows.count


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_file_that_is_not_what_was_written_ends_the_stream(store: Store, harm: str):
    rows = rows_of(store, "t")
    path = f"{table_folder('t')}/{rows.files[2].path}"
    if harm == "missing":
        store.remove(path)
    else:
        store.replace(path, store.read(path)[:-1] + b"?")
    with pytest.raises(IncompleteError, match=f"is {harm}"):
        list(rows.batches())


def test_a_table_without_rows_has_columns_and_no_batch(empty_store: Store):
    rows = rows_of(empty_store, "t")
    assert (rows.count, list(rows.batches())) == (0, [])
    assert {schema.ROW_ID, schema.VECTOR, "caption", "folder"} <= set(rows.schema.names)


def test_a_far_store_is_read_alike(s3: str, wanted: dict[str, dict]):
    far = Store(f"{s3}/exchange-rows")
    write_table(far)
    assert same_rows(pa.Table.from_batches(rows_of(far, "t").batches()).to_pylist(), wanted)


def test_calls_are_made_ahead_in_order_and_no_more_than_asked_for():
    made, lock = [], threading.Lock()

    def call(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        with lock:
            made.append(number)
        if number == 9:
            raise ValueError("nine")
        return number * number

    assert list(ahead(call, range(9), 3)) == [number * number for number in range(9)]
    with pytest.raises(ValueError, match="nine"):
        list(ahead(call, range(1000), 3))
    assert max(made) <= 12
    assert list(ahead(call, [], 3)) == []
