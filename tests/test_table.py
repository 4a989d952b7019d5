import itertools
import json
import random
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import IncompleteError, InputError
from pipeline.model import PreprocessSpec
from pipeline.seal import seal
from pipeline.store import Store
from pipeline.table import (
    File,
    Receipt,
    TableRecord,
    find_table,
    live_receipts,
    parse_receipt,
    read_checked,
    read_record,
    table_folder,
    write_record,
)

RECORD = TableRecord(
    source="s",
    image_column="image",
    image_kind="bytes",
    key_column=None,
    kept={"label": "string"},
    partition_by=("label",),
    unit_rows=10,
    space="abc",
    model="m",
    model_id="m@1",
    model_sha256={"w": "0"},
    preprocess=PreprocessSpec(64, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    precision="bf16",
    d=8,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_a_record_is_read_as_it_was_written(store: Store):
    assert read_record(store, "t") is None
    write_record(store, "t", RECORD, {"ray": "2.60.0"})
    assert read_record(store, "t") == RECORD
    assert asdict(read_record(store, "t"))["preprocess"]["mean"] == (0.5, 0.5, 0.5)


def test_a_damaged_record_is_named(store: Store):
    store.create("embeddings/t/table.json", b'{"source": "s"}')
    with pytest.raises(InputError, match=r"embeddings/t/table\.json is damaged"):
        read_record(store, "t")


def test_the_only_table_needs_no_name(store: Store):
    with pytest.raises(InputError, match="it has no tables"):
        find_table(store, None)
    write_record(store, "one", RECORD, {})
    assert find_table(store, None) == "one"
    write_record(store, "two", RECORD, {})
    assert find_table(store, "one") == "one"
    with pytest.raises(InputError, match="wanted --table; it has one, two"):
        find_table(store, None)
    with pytest.raises(InputError, match="wanted table 'three'"):
        find_table(store, "three")


def test_a_file_that_changed_by_one_bit_or_is_gone_is_not_read(store: Store, tmp_path: Path):
    import hashlib

    path = tmp_path / table_folder("t") / "data" / "f.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"a": range(100)}), path)
    content = path.read_bytes()
    file = File("data/f.parquet", 100, len(content), hashlib.sha256(content).hexdigest())
    assert read_checked(store, table_folder("t"), file).num_rows == 100
    path.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    with pytest.raises(IncompleteError, match="is damaged"):
        read_checked(store, table_folder("t"), file)
    path.unlink()
    with pytest.raises(IncompleteError, match="is missing"):
        read_checked(store, table_folder("t"), file)


def receipt(
    state: str | None, first_row: int = 0, lease: int = 1, shard: str = "/a", shard_rows: int | None = 30
) -> Receipt:
    """A unit of ten rows of a shard of thirty."""
    return Receipt(
        unit=f"{shard}-{state}-{first_row}",
        shard=shard,
        first_row=first_row,
        first_group=0,
        groups=1,
        rows_in=10,
        embedded=10,
        rejected=0,
        reasons={},
        encoders=("cpu",),
        data=(),
        rejects=(),
        seconds=1.0,
        state=state,
        shard_rows=shard_rows,
        lease=lease,
    )


def whole(state: str, lease: int = 1, shard: str = "/a") -> list[Receipt]:
    return [receipt(state, first_row, lease, shard) for first_row in (0, 10, 20)]


def states(receipts: list[Receipt]) -> set[str | None]:
    return {one.state for one in live_receipts(receipts).values()}


def test_no_receipts_are_no_table():
    assert live_receipts([]) == {}


def test_live_receipts_are_by_unit():
    receipts = [*whole("x"), *whole("x", shard="/b")]
    assert live_receipts(receipts) == {one.unit: one for one in receipts}


def test_a_shard_changes_over_with_the_last_unit_of_its_new_state_whatever_comes_first():
    old, new = whole("old"), whole("new", lease=2)
    for order in itertools.permutations(new):
        written = []
        for one in order:
            assert states([*old, *written]) == {"old"}
            written.append(one)
        for receipts in ([*old, *written], [*written, *old], [old[0], *written, *old[1:]]):
            assert live_receipts(receipts) == {one.unit: one for one in new}


def test_of_whole_states_the_newest_counts_by_its_lease():
    by_lease = {lease: whole(f"{lease:02d}", lease) for lease in (1, 2, 9, 10)}
    for order in itertools.permutations(by_lease.values()):
        assert states([one for state in order for one in state]) == {"10"}


def test_a_state_that_several_runs_wrote_is_as_new_as_the_last_of_them():
    slow = [receipt("slow", 0, 1), receipt("slow", 10, 4), receipt("slow", 20, 1)]
    assert states([*whole("between", 3), *slow]) == {"slow"}
    assert states([*slow, *whole("after", 5)]) == {"after"}


def test_while_no_state_is_whole_the_newest_counts_as_far_as_it_is_there():
    old, new = whole("old")[:2], whole("new", lease=2)[1:]
    assert live_receipts([*new, *old]) == {one.unit: one for one in new}
    assert live_receipts(old) == {one.unit: one for one in old}


def test_too_many_rows_are_no_whole_state():
    odd = [*whole("odd", lease=2), receipt("odd", 30, lease=2)]
    assert states([*odd, *whole("old")]) == {"old"}


def test_a_shard_of_the_first_format_is_whole_until_a_new_state_is():
    first_format = [receipt(None, first_row, lease=0, shard_rows=None) for first_row in (0, 10)]
    new = whole("new")
    assert live_receipts(first_format) == {one.unit: one for one in first_format}
    assert states([*new[:2], *first_format]) == {None}
    assert states([*first_format, *new]) == {"new"}


def test_receipts_of_the_first_format_are_read_without_what_they_did_not_say():
    fields = asdict(receipt(None, lease=0, shard_rows=None))
    for later in ("state", "shard_rows", "lease", "reused"):
        del fields[later]
    fields["data"] = [{"path": "data/1", "rows": 10, "bytes": 1, "sha256": "0"}]
    read = parse_receipt("r", json.dumps(fields).encode())
    assert read.data == (File("data/1", 10, 1, "0"),)
    assert (read.state, read.shard_rows, read.lease, read.reused) == (None, None, 0, 0)
    assert live_receipts([read]) == {read.unit: read}


def test_a_receipt_is_read_as_it_was_sealed_and_not_if_it_was_changed():
    one = receipt("x")
    content = seal(asdict(one))
    assert parse_receipt("r", content) == one
    with pytest.raises(InputError, match=r"receipt r/1\.json is damaged \(it does not match its seal\)"):
        parse_receipt("r/1.json", content.replace(b'"rows_in": 10', b'"rows_in": 11'))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_live_is_what_the_slow_choice_says_for_each_shard_alone(seed: int):
    rng = random.Random(seed)
    receipts = []
    for shard in ("/a", "/b", "/c"):
        for lease, state in enumerate(rng.sample("uvwxyz", rng.randrange(4)), 1):
            receipts += rng.sample(whole(state, lease, shard), rng.randrange(1, 4))
    rng.shuffle(receipts)
    expected = {}
    for shard in {one.shard for one in receipts}:
        mine = [one for one in receipts if one.shard == shard]
        newest_first = sorted({one.state for one in mine}, key=lambda s: -max(o.lease for o in mine if o.state == s))
        complete = [state for state in newest_first if len([one for one in mine if one.state == state]) == 3]
        chosen = (complete or newest_first)[0]
        expected.update({one.unit: one for one in mine if one.state == chosen})
    assert live_receipts(receipts) == expected
