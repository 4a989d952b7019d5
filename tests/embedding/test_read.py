import io
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import aiohttp
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError

from pipeline import schema
from pipeline.config import SourceConfig
from pipeline.embedding import read
from pipeline.embedding.plan import cut, survey
from pipeline.embedding.read import NOTHING, ReadSpec, UnitSource, UnreadableError, read_or_say_why, read_unit
from pipeline.table import Unit
from tests.conftest import write_shard

KEPT = pa.schema([("label", pa.string()), ("number", pa.int32())])
NOTHING_KEPT = pa.schema([])
LIMIT = 1 << 20


def rows_of(folder: Path, unit_rows: int, spec: ReadSpec) -> list[pa.Table]:
    source = SourceConfig(name="s", path=str(folder), image_column=spec.image_column)
    return [batch for unit in cut(survey(source).shards, unit_rows) for batch in read_unit(unit, spec)]


@pytest.mark.parametrize("unit_rows", [1, 25, 1000])
def test_every_row_comes_once_with_its_number_and_its_key(corpus: Path, unit_rows: int):
    batches = rows_of(
        corpus,
        unit_rows,
        ReadSpec("image", "bytes", "key", KEPT, LIMIT),
    )
    rows = pa.concat_tables(batches)
    expected = pa.concat_tables([pq.read_table(path) for path in sorted(corpus.glob("*.parquet"))])
    assert rows[schema.ROW_ID].to_pylist() == expected["key"].to_pylist()
    assert rows[schema.IMAGE].to_pylist() == expected["image"].to_pylist()
    assert rows["label"].to_pylist() == expected["label"].to_pylist()
    assert rows[schema.ROW].to_pylist() == list(range(40)) * 3
    assert rows[schema.REASON].null_count == 120


def test_without_a_key_column_keys_are_shard_and_row(corpus: Path):
    rows = pa.concat_tables(rows_of(corpus, 1000, ReadSpec("image", "bytes", None, NOTHING_KEPT, LIMIT)))
    keys = rows[schema.ROW_ID].to_pylist()
    assert keys[0] == f"{corpus}/shard-0.parquet#0"
    assert keys[-1] == f"{corpus}/shard-2.parquet#39"
    assert len(set(keys)) == 120


def test_batches_are_bounded_in_bytes_however_uneven_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = [b"x" * (200_000 if row % 50 == 7 else 10) for row in range(300)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    monkeypatch.setattr(read, "BATCH_BYTES", 150_000)
    batches = rows_of(tmp_path, 1000, ReadSpec("image", "bytes", None, NOTHING_KEPT, LIMIT))
    assert [row for batch in batches for row in batch[schema.ROW].to_pylist()] == list(range(300))
    assert all(batch[schema.IMAGE].nbytes <= 300_000 or batch.num_rows == 1 for batch in batches)


def test_paths_are_resolved_against_the_folder_of_their_shard(tmp_path: Path):
    paths = ["a.jpg", "deep/b.jpg", "/abs/c.jpg", "s3://bucket/d.jpg", None]
    pq.write_table(pa.table({"image": paths}), tmp_path / "a.parquet")
    (batch,) = rows_of(tmp_path, 100, ReadSpec("image", "reference", None, NOTHING_KEPT, LIMIT))
    assert batch[schema.REFERENCE].to_pylist() == [
        f"{tmp_path}/a.jpg",
        f"{tmp_path}/deep/b.jpg",
        "/abs/c.jpg",
        "s3://bucket/d.jpg",
        None,
    ]
    assert batch[schema.IMAGE].null_count == 5


@pytest.mark.parametrize("kind", ["reference", "struct"])
def test_a_path_that_is_no_text_is_a_path_to_nothing(tmp_path: Path, kind: str):
    raw = pa.array([b"a.jpg", b"b\xff.jpg"], pa.binary())
    paths = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    images = paths
    if kind == "struct":
        images = pa.StructArray.from_arrays([pa.nulls(2, pa.binary()), paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    (batch,) = rows_of(tmp_path, 100, ReadSpec("image", kind, None, NOTHING_KEPT, LIMIT))
    assert batch[schema.REFERENCE].to_pylist() == [f"{tmp_path}/a.jpg", f"{tmp_path}/b\ufffd.jpg"]


def test_of_a_struct_the_bytes_count_before_the_path(tmp_path: Path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": b"x", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None], kind)
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    assert survey(SourceConfig(name="s", path=str(tmp_path))).image_kind == "struct"
    (batch,) = rows_of(tmp_path, 100, ReadSpec("image", "struct", None, NOTHING_KEPT, LIMIT))
    assert batch[schema.IMAGE].to_pylist() == [b"x", None, None]
    assert batch[schema.REFERENCE].to_pylist() == [None, f"{tmp_path}/b.jpg", None]


def test_an_image_that_is_too_long_goes_no_further_than_reading(tmp_path: Path):
    pq.write_table(pa.table({"image": [b"x" * 10, b"x" * 11, None, b"x" * 1000]}), tmp_path / "a.parquet")
    (batch,) = rows_of(tmp_path, 100, ReadSpec("image", "bytes", None, NOTHING_KEPT, 10))
    assert batch[schema.IMAGE].to_pylist() == [b"x" * 10, None, None, None]
    assert batch[schema.IMAGE].nbytes < 100  # the bytes are gone, not only hidden
    assert batch[schema.REASON].to_pylist() == [None, "too_many_bytes", None, "too_many_bytes"]
    assert batch[schema.ERROR][3].as_py() == "Failed to decode image at row 3: 1000 bytes, at most 10 are read"


def test_rows_that_are_left_out_carry_their_reason_and_no_image(corpus: Path):
    source = SourceConfig(name="s", path=str(corpus))
    units = cut(survey(source).shards, 25)
    shard = units[2].shard
    left_out = {shard: np.array([0, 19, 20, 39])}
    tasks = UnitSource(units, ReadSpec("image", "bytes", "key", NOTHING_KEPT, LIMIT), left_out).get_read_tasks(1)
    rows = pa.concat_tables([batch for task in tasks for batch in task.read_fn()])
    out = rows.filter(pc.is_valid(rows[schema.REASON]))
    assert out[schema.SHARD].to_pylist() == [shard] * 4
    assert out[schema.ROW].to_pylist() == [0, 19, 20, 39]
    assert out[schema.IMAGE].null_count == 4
    assert out[schema.ERROR][1].as_py() == "Left out image at row 19: an earlier row has the key 'row-00059'"
    assert rows.num_rows == 120


@dataclass
class Remote:
    """A store of one shard of forty rows in two units, which fails when it is told to."""

    content: bytes
    rows: pa.Table
    units: list[Unit]
    calls: int = 0  # so far
    stats: int = 0  # of these; each try begins with one
    fails: Callable[[int], bool] = lambda call: False  # whether the n-th does
    error: Exception = field(default_factory=lambda: OSError("connection reset"))
    then: Callable[[], object] = lambda: None  # what else happens when it fails

    def call(self) -> None:
        self.calls += 1
        if self.fails(self.calls):
            self.then()
            raise self.error

    def fail_at(self, *calls: int) -> None:
        self.calls, self.stats, self.fails = 0, 0, lambda call: call in calls

    def fail_from(self, first: int) -> None:
        self.calls, self.stats, self.fails = 0, 0, lambda call: call >= first

    def count_calls(self, unit: Unit, spec: ReadSpec) -> int:
        """Count the calls of reading a unit when none fails."""
        self.fail_at()
        for _ in read_unit(unit, spec):
            pass
        return self.calls


class Flaky(fsspec.AbstractFileSystem):
    """What fsspec sees of the remote store."""

    protocol = "flaky"
    cachable = False
    remote: ClassVar[Remote]

    def isfile(self, path: str) -> bool:
        return True  # not asked of the store: fsspec's own takes a failure for a no, and has a test to itself below

    def info(self, path: str, **_: object) -> dict:
        self.remote.stats += 1
        self.remote.call()
        return {"name": path, "type": "file", "size": len(self.remote.content), "ETag": hash(self.remote.content)}

    def _open(self, path: str, mode: str = "rb", **_: object) -> io.BytesIO:
        self.remote.call()
        return FlakyFile(self.remote)


class FlakyFile(io.BytesIO):
    def __init__(self, remote: Remote) -> None:
        super().__init__(remote.content)
        self.remote = remote

    def read(self, size: int | None = -1) -> bytes:
        self.remote.call()
        return super().read(size)


SPEC = ReadSpec("image", "bytes", "key", KEPT, LIMIT)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """Row groups of ten rows, units of twenty, batches of four; nothing fails yet."""
    path = write_shard(tmp_path / "a.parquet", 0, [b"image %d" % row for row in range(40)], group_rows=10)
    content = path.read_bytes()
    (shard,) = survey(SourceConfig(name="s", path=str(path))).shards
    listed = {"shard": "flaky://a.parquet", "fingerprint": f"{len(content)}:{hash(content)}"}
    remote = Remote(content, pq.read_table(path), [replace(unit, **listed) for unit in cut((shard,), 20)])
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(Flaky, "remote", remote, raising=False)
    monkeypatch.setattr(read, "WAIT_S", 1e-5)
    monkeypatch.setattr(read, "MAX_BATCH_ROWS", 4)
    return remote


def check_rows(batches: Iterable[pa.Table], remote: Remote, unit: Unit, rows: int | None = None) -> None:
    """Check that batches have the unit's first rows, each once and in order."""
    expected = remote.rows.slice(unit.first_row, unit.rows if rows is None else rows)
    got = [row for batch in batches for row in batch.to_pylist()]
    assert [row[schema.ROW] for row in got] == expected["number"].to_pylist()
    for ours, theirs in ((schema.ROW_ID, "key"), (schema.IMAGE, "image"), ("label", "label"), ("number", "number")):
        assert [row[ours] for row in got] == expected[theirs].to_pylist()


def test_rows_come_once_and_in_order_whichever_call_to_the_store_fails(remote: Remote):
    for unit in remote.units:
        calls = remote.count_calls(unit, SPEC)
        assert calls > 5  # a stat, a listing, the footer, and pages of each row group
        for failing in range(1, calls + 1):
            remote.fail_at(failing)
            check_rows(read_unit(unit, SPEC), remote, unit)
            assert remote.stats == 2


@pytest.mark.parametrize("seed", range(10))
def test_rows_come_once_and_in_order_as_often_as_it_is_tried(remote: Remote, seed: int):
    rng = random.Random(seed)
    unit = rng.choice(remote.units)
    failing, place = [], 0
    for _ in range(read.TRIES - 1):
        place += rng.randrange(1, 12)
        failing.append(place)
    remote.fail_at(*failing)
    check_rows(read_unit(unit, SPEC), remote, unit)


class Cut:
    """A shard that fails after so many batches, in the middle of its row groups."""

    def __init__(self, file: pq.ParquetFile, batches: int) -> None:
        self.file, self.batches, self.metadata = file, batches, file.metadata

    def __enter__(self) -> "Cut":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def iter_batches(self, *arguments: object, **options: object) -> Iterator[pa.RecordBatch]:
        batches = list(self.file.iter_batches(*arguments, **options))
        yield from batches[: self.batches]
        if len(batches) >= self.batches:
            raise OSError("connection reset")


@pytest.mark.parametrize("batches", range(4))
@pytest.mark.parametrize("batch_rows", [1, 4, 8])
def test_rows_come_once_and_in_order_wherever_within_a_row_group_it_fails(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, batches: int, batch_rows: int
):
    monkeypatch.setattr(read, "MAX_BATCH_ROWS", batch_rows)
    open_parquet, opened = read.open_parquet, []

    def opens(url: str) -> object:
        opened.append(url)
        file = open_parquet(url)
        return Cut(file, batches) if len(opened) < read.TRIES else file

    monkeypatch.setattr(read, "open_parquet", opens)
    for unit in remote.units:
        opened.clear()
        check_rows(read_unit(unit, SPEC), remote, unit)
        assert 2 <= len(opened) <= read.TRIES


def test_after_the_last_try_the_first_row_that_is_missing_is_named(remote: Remote):
    for unit in remote.units:
        for failing in range(1, remote.count_calls(unit, SPEC) + 1):
            remote.fail_from(failing)
            batches = []
            with pytest.raises(UnreadableError, match=r"a\.parquet cannot be read from row \d+ on: ") as error:
                batches.extend(read_unit(unit, SPEC))  # which keeps what came before the error
            assert remote.stats == read.TRIES
            assert unit.first_row <= error.value.row < unit.first_row + unit.rows
            assert f"from row {error.value.row} on: connection reset" in str(error.value)
            check_rows(batches, remote, unit, error.value.row - unit.first_row)


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (TimeoutError("no answer"), read.TRIES),
        (ClientError({"Error": {"Code": "SlowDown"}}, "GetObject"), read.TRIES),
        (aiohttp.ClientPayloadError("cut short"), read.TRIES),
        (pa.ArrowInvalid("no Parquet magic bytes"), read.TRIES),  # as half an answer is
        (FileNotFoundError("gone"), 1),
        (PermissionError("denied"), 1),
    ],
)
def test_only_what_may_pass_is_tried_again(remote: Remote, error: Exception, tries: int):
    remote.error = error
    for failing in (1, 4, remote.count_calls(remote.units[1], SPEC)):
        remote.fail_from(failing)
        with pytest.raises(UnreadableError):
            list(read_unit(remote.units[1], SPEC))
        assert remote.stats == tries


def test_a_store_that_fails_once_while_a_shard_is_opened_is_asked_again(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(Flaky, "isfile")
    for failing in range(1, remote.count_calls(remote.units[0], SPEC) + 1):
        remote.fail_at(failing)
        check_rows(read_unit(remote.units[0], SPEC), remote, remote.units[0])


def test_other_errors_are_nobodys_unreadable_shard(remote: Remote):
    remote.error = ZeroDivisionError()
    remote.fail_at(4)
    with pytest.raises(ZeroDivisionError):
        list(read_unit(remote.units[0], SPEC))


def test_a_disk_that_fails_is_not_asked_again(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    (unit, *_) = cut(survey(SourceConfig(name="s", path=str(corpus))).shards, 100)
    opened = []

    def fails(url: str) -> pq.ParquetFile:
        opened.append(url)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(read, "open_parquet", fails)
    with pytest.raises(UnreadableError, match="row 0 on"):
        list(read_unit(unit, SPEC))
    assert opened == [unit.shard]


@pytest.mark.parametrize("kind", ["bytes", "reference", "struct"])
def test_where_a_unit_ends_early_one_row_says_why_in_the_form_of_the_others(remote: Remote, kind: str):
    images = remote.rows["image"].combine_chunks()
    if kind == "reference":
        images = images.cast(pa.string())
    if kind == "struct":
        images = pa.StructArray.from_arrays([images, pa.nulls(40, pa.string())], ["bytes", "path"])
    written = io.BytesIO()
    pq.write_table(remote.rows.set_column(1, "image", images), written, row_group_size=10)
    remote.content = written.getvalue()
    spec = replace(SPEC, image_kind=kind)
    unit = replace(remote.units[1], fingerprint=None)
    remote.fail_at()
    whole = list(read_or_say_why(unit, spec, NOTHING, unit.rows))
    calls = remote.calls
    remote.fail_from(calls)
    *batches, last = read_or_say_why(unit, spec, NOTHING, unit.rows)
    assert batches
    assert {batch.schema for batch in whole} == {batch.schema for batch in (*batches, last)}
    good = pa.concat_tables(batches)
    assert good.equals(pa.concat_tables(whole).slice(0, good.num_rows))
    (row,) = last.to_pylist()
    assert row[schema.REASON] == schema.UNREADABLE
    assert (row[schema.UNIT], row[schema.SHARD]) == (unit.id, unit.shard)
    assert row[schema.ROW] == unit.first_row + good.num_rows
    assert row[schema.ERROR] == f"shard {unit.shard} cannot be read from row {row[schema.ROW]} on: connection reset"


def test_of_a_unit_that_cannot_be_read_at_all_there_is_that_row_alone(remote: Remote):
    remote.fail_from(1)
    (only,) = read_or_say_why(remote.units[1], SPEC, NOTHING, 20)
    assert only[schema.ROW].to_pylist() == [20]
    assert only[schema.REASON].to_pylist() == [schema.UNREADABLE]


def test_a_shard_that_was_rewritten_since_it_was_listed_is_refused(corpus: Path):
    first, *_ = cut(survey(SourceConfig(name="s", path=str(corpus))).shards, 25)
    write_shard(Path(first.shard), 0, [b"other"] * 40, group_rows=10)
    with pytest.raises(UnreadableError, match=r"shard-0\.parquet was rewritten while this run was at it") as error:
        list(read_unit(first, SPEC))
    assert error.value.row == 0
    assert sum(batch.num_rows for batch in read_unit(replace(first, fingerprint=None), SPEC)) == first.rows


def test_a_shard_that_is_rewritten_between_two_tries_is_not_read_on(remote: Remote, tmp_path: Path):
    old = remote.content
    new = write_shard(tmp_path / "new.parquet", 0, [b"other"] * 40, group_rows=10).read_bytes()
    for unit in remote.units:
        remote.then = lambda: None
        calls = remote.count_calls(unit, SPEC)
        remote.then = lambda: setattr(remote, "content", new)
        for failing in range(1, calls + 1):
            remote.content = old
            remote.fail_at(failing)
            batches = []
            with pytest.raises(UnreadableError, match="was rewritten") as error:
                batches.extend(read_unit(unit, SPEC))
            check_rows(batches, remote, unit, error.value.row - unit.first_row)
        remote.content = old


@pytest.mark.parametrize("rows_each", [None, 1, 4, 7, 20, 1000])
def test_a_trial_reads_the_first_rows_of_each_unit(remote: Remote, rows_each: int | None):
    tasks = UnitSource(remote.units, SPEC, {}, rows_each).get_read_tasks(1)
    for unit, task in zip(remote.units, tasks, strict=True):
        wanted = min(rows_each or unit.rows, unit.rows)
        assert task.metadata.num_rows == wanted
        check_rows(task.read_fn(), remote, unit, wanted)


def test_what_fails_behind_the_rows_of_a_trial_is_not_its_business(remote: Remote):
    unit = remote.units[0]
    calls = remote.count_calls(unit, SPEC)
    for failing in range(1, calls + 1):
        remote.fail_from(failing)
        *_, last = read_or_say_why(unit, SPEC, NOTHING, 4)
        reached = last[schema.REASON].null_count == last.num_rows
        assert last[schema.ROW][-1].as_py() == (3 if reached else 0)
    assert reached
