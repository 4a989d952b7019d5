import itertools
from pathlib import Path

import pytest

from pipeline.embedding.receipts import Ledger
from pipeline.errors import IncompleteError, InputError
from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import Unit, read_receipts

UNIT = Unit("a-0", "/a.parquet", 100, 10, 0, 1)
OTHER = Unit("b-0", "/b.parquet", 0, 4, 0, 1)


class HeldLease(Lease):
    """A lease that holds until it is told that it is lost."""

    def check(self) -> None:
        if self.lost:
            raise IncompleteError(self.lost)

    confirm = check


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def ledger(store: Store, *units: Unit) -> Ledger:
    return Ledger(store, "t", [unit.shard for unit in units], units, HeldLease(store, "t"))


def part(unit: Unit, first: int, rows: int, rejected: int = 0) -> dict:
    embedded = rows - rejected
    name = f"{unit.id}-{first}"
    return {
        "unit": unit.id,
        "first_row": first,
        "rows": rows,
        "embedded": embedded,
        "rejected": rejected,
        "reused": 0,
        "reasons": [{"reason": "null", "rows": rejected}] if rejected else [],
        "encoders": [f"device {first % 2}"] if embedded else [],
        "data": [{"path": f"data/{name}", "rows": embedded, "bytes": 1, "sha256": "0"}] if embedded else [],
        "rejects": [{"path": f"rejects/{name}", "rows": rejected, "bytes": 1, "sha256": "0"}] if rejected else [],
        "unreadable": None,
        "failed": None,
    }


@pytest.mark.parametrize("order", itertools.permutations([(100, 3, 1), (103, 6, 0), (109, 1, 1)]))
def test_a_unit_is_committed_when_its_rows_are_all_there_in_whatever_order(store: Store, order: tuple):
    books = ledger(store, UNIT, OTHER)
    for i, (first, rows, rejected) in enumerate(order):
        assert UNIT in books.pending
        assert read_receipts(store, "t") == {}, f"committed after {i} of 3 parts"
        books.add(part(UNIT, first, rows, rejected))
    receipt = read_receipts(store, "t")["a-0"]
    assert (receipt.rows_in, receipt.embedded, receipt.rejected, receipt.reasons) == (10, 8, 2, {"null": 2})
    assert [file.path for file in receipt.data] == ["data/a-0-100", "data/a-0-103"]
    assert receipt.encoders == ("device 0", "device 1")
    assert books.pending == [OTHER]


@pytest.mark.parametrize(
    "parts",
    [
        [(100, 5), (100, 5)],  # twice the same, and five never
        [(100, 6), (105, 4)],  # one row twice, none missing by count
        [(100, 5), (106, 5)],  # a gap
        [(100, 11)],  # more than there are
        [(99, 10)],
    ],
)
def test_rows_that_do_not_tile_their_unit_are_never_committed(store: Store, parts: list):
    books = ledger(store, UNIT)
    *early, last = parts
    for first, rows in early:
        books.add(part(UNIT, first, rows))
    with pytest.raises(RuntimeError, match="unit a-0"):
        books.add(part(UNIT, *last))
    assert read_receipts(store, "t") == {}


@pytest.mark.parametrize("change", [{"embedded": 9}, {"rejected": 1}, {"reasons": [{"reason": "null", "rows": 1}]}])
def test_counts_that_do_not_close_are_never_committed(store: Store, change: dict):
    books = ledger(store, UNIT)
    with pytest.raises(RuntimeError, match="counts do not close"):
        books.add({**part(UNIT, 100, 10), **change})
    assert read_receipts(store, "t") == {}


def test_a_second_run_skips_what_has_a_receipt(store: Store):
    ledger(store, UNIT, OTHER).add(part(UNIT, 100, 10))
    again = ledger(store, UNIT, OTHER)
    assert again.pending == [OTHER]


def test_nothing_is_committed_under_a_lost_lease(store: Store):
    books = ledger(store, UNIT)
    books.lease.lost = "taken over"
    with pytest.raises(IncompleteError):
        books.add(part(UNIT, 100, 10))
    assert read_receipts(store, "t") == {}


def test_the_first_of_two_receipts_counts(store: Store):
    first, second = ledger(store, UNIT), ledger(store, UNIT)
    first.add(part(UNIT, 100, 10))
    second.add(part(UNIT, 100, 10, rejected=3))
    assert second.receipts["a-0"].rejected == 0


def test_only_files_that_no_receipt_names_are_removed(store: Store):
    books = ledger(store, UNIT)
    books.add(part(UNIT, 100, 10, rejected=1))
    named = ["data/a-0-100", "rejects/a-0-100"]
    orphans = ["data/orphan", "rejects/unit=x/orphan", "data/.half.tmp", "receipts/.half.tmp"]
    for path in [*named, *orphans]:
        store.create(f"t/{path}", b"")
    assert books.remove_unnamed_files() == 4
    assert sorted(store.files("t")) == sorted([*named, "receipts/a-0.json"])


def test_a_unit_of_an_earlier_state_of_a_shard_is_replaced_and_one_of_a_removed_shard_is_not(store: Store):
    books = ledger(store, UNIT, OTHER)
    books.add(part(UNIT, 100, 10))
    books.add(part(OTHER, 0, 4))
    newer = Unit("a-1", "/a.parquet", 0, 2, 0, 1)
    later = ledger(store, newer)
    assert later.replaced() == []  # as long as the newer one is not written
    later.add(part(newer, 0, 2))
    assert [receipt.unit for receipt in later.replaced()] == ["a-0"]
    later.retire([later.replaced()[0]])
    assert sorted(read_receipts(store, "t")) == ["a-1", "b-0"]
    assert [receipt.unit for receipt in later.removed(())] == ["b-0"]
    assert later.removed(["/b.parquet"]) == []


def test_a_damaged_receipt_is_named(store: Store):
    store.create("t/receipts/a-0.json", b'{"unit": "a-0", "ro')
    with pytest.raises(InputError, match=r"receipts/a-0\.json is damaged"):
        ledger(store, UNIT)


def test_files_of_units_that_another_run_committed_meanwhile_are_kept(store: Store):
    sleeper, other = ledger(store, UNIT, OTHER), ledger(store, UNIT, OTHER)
    sleeper.add(part(UNIT, 100, 10))
    other.add(part(OTHER, 0, 4))
    for path in ("data/a-0-100", "data/b-0-0", "data/orphan"):
        store.create(f"t/{path}", b"")
    assert sleeper.remove_unnamed_files() == 1
    assert "b-0-0" in store.files("t/data")


def test_a_shard_that_was_rewritten_to_nothing_gives_up_its_rows(store: Store):
    ledger(store, UNIT).add(part(UNIT, 100, 10))
    later = Ledger(store, "t", [UNIT.shard], [], HeldLease(store, "t"))
    assert [receipt.unit for receipt in later.replaced()] == ["a-0"]
