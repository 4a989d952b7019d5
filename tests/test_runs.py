import contextlib
import random
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

from pipeline import runs
from pipeline.config import IndexConfig
from pipeline.errors import IncompleteError, InputError, LeaseHeldError, RunError
from pipeline.runs import HISTORY, Run, brief, earlier_runs, new_run, recorded, run_folder, write_run
from pipeline.store import Store

FIRST_RUN = Run("20260101T000000Z-000000", "embed", "2026-01-01T00:00:00Z", {}, {}, None, table="t")


class FullStore(Store):
    """A store that can be read and not be written."""

    def __init__(self, url: str, error: Exception) -> None:
        super().__init__(url)
        self.error = error

    def replace(self, relative: str, content: bytes) -> None:
        raise self.error


class LostStore(FullStore):
    """A store that cannot even be asked."""

    def exists(self, relative: str) -> bool:
        raise self.error


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is set."""
    clock = SimpleNamespace(now_s=100.0, gmtime=time.gmtime, strftime=time.strftime)
    clock.monotonic = lambda: clock.now_s
    monkeypatch.setattr(runs, "time", clock)
    return clock


def run_number(number: int, **fields: object) -> Run:
    return replace(FIRST_RUN, id=f"20260101T{number:06d}Z-{number % 7:06x}", **fields)


def record(store: Store, run: Run) -> Run:
    return Run(**store.read_json(f"{run_folder(run.id)}/run.json"))


@pytest.mark.parametrize("seed", range(5))
def test_the_times_of_stages_add_up(clock: SimpleNamespace, seed: int):
    rng = random.Random(seed)
    run, expected = replace(FIRST_RUN, stages={}), Counter()
    for _ in range(20):
        name, seconds = rng.choice(["plan", "embed", "index"]), rng.randrange(1, 1000)
        with run.stage(name):
            assert run.at == name
            clock.now_s += seconds
        clock.now_s += rng.randrange(100)  # between stages
        expected[name] += seconds
        assert list(run.stages)[-1] == name
    assert run.stages == expected


def test_a_stage_inside_another_is_timed_in_both(clock: SimpleNamespace):
    run = replace(FIRST_RUN, stages={})
    assert run.at == "start"
    with run.stage("embed"):
        clock.now_s += 3
        with run.stage("index"):
            clock.now_s += 4
    assert run.stages == {"embed": 7.0, "index": 4.0}


def test_a_stage_that_failed_has_its_time(clock: SimpleNamespace):
    run = replace(FIRST_RUN, stages={})
    with contextlib.suppress(IncompleteError), run.stage("embed"):
        clock.now_s += 3
        raise IncompleteError("no rows")
    assert (run.stages, run.at) == ({"embed": 3.0}, "embed")


def test_a_record_is_read_as_it_was_written(store: Store):
    run = new_run("jobs.build_index", IndexConfig(store=store.url, table="t", deadline="PT6H", single_writer=True))
    run.table = "t"
    write_run(store, run)
    assert earlier_runs(store, "t") == [run]
    assert (run.config["deadline"], run.config["single_writer"], run.exit_status) == ("PT6H", True, None)
    assert run.id.startswith(run.started.replace("-", "").replace(":", ""))


def test_two_runs_of_one_second_have_two_names():
    config = IndexConfig(store="s")
    assert new_run("a", config).id != new_run("a", config).id


def test_a_run_that_ends_well_says_so_and_how_long_it_took(store: Store, clock: SimpleNamespace):
    run = replace(FIRST_RUN)
    with recorded(store, run):
        write_run(store, run)
        assert record(store, run).exit_status is None  # as one that is killed leaves it
        clock.now_s += 12.5
    assert record(store, run) == replace(FIRST_RUN, exit_status=0, seconds=12.5)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RunError("a"), 1, "a"),
        (InputError("no such column"), 2, "no such column"),
        (IncompleteError("3 rows missing"), 3, "3 rows missing"),
        (LeaseHeldError("held"), 4, "held"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("x"), 1, "KeyError: 'x'"),
        (SystemExit(5), 1, "SystemExit: 5"),
        (MemoryError(), 1, "MemoryError: "),
    ],
)
def test_what_ended_a_run_is_recorded_and_passes_through(
    store: Store, clock: SimpleNamespace, error: BaseException, status: int, message: str
):
    run = replace(FIRST_RUN)

    def fail() -> None:
        with recorded(store, run):
            write_run(store, run)
            clock.now_s += 2
            raise error

    with pytest.raises(type(error)) as passed:
        fail()
    assert passed.value is error
    assert record(store, run) == replace(FIRST_RUN, exit_status=status, message=message, seconds=2.0)


@pytest.mark.parametrize("table", [None, "t"])
@pytest.mark.parametrize("error", [None, InputError("no such column")])
def test_where_no_record_was_written_none_is(store: Store, table: str | None, error: Exception | None):
    run = replace(FIRST_RUN, table=table)
    with contextlib.suppress(InputError), recorded(store, run):
        if error is not None:
            raise error
    assert store.files("") == {}
    assert run.exit_status == (2 if error else 0)


@pytest.mark.parametrize("kind", [FullStore, LostStore])
@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")]
)
def test_a_store_that_fails_at_the_end_does_not_hide_what_ended_the_run(
    store: Store, caplog: pytest.LogCaptureFixture, kind: type, failure: Exception
):
    run = replace(FIRST_RUN)
    write_run(store, run)
    with pytest.raises(IncompleteError, match="3 rows missing"), recorded(kind(store.url, failure), run):
        raise IncompleteError("3 rows missing")
    assert "not recorded" in caplog.text
    with recorded(kind(store.url, failure), run):
        pass  # nor does it make a good end a bad one
    assert record(store, run).exit_status is None


@pytest.mark.parametrize("count", [0, 1, HISTORY, HISTORY + 5])
def test_history_is_the_newest_runs_of_the_table_the_newest_first(store: Store, count: int):
    ours = [run_number(2 * number, exit_status=0) for number in range(count)]
    others = [run_number(2 * number + 1, table=("u", None)[number % 2]) for number in range(count)]
    for run in random.Random(0).sample([*ours, *others], 2 * count):
        write_run(store, run)
    assert earlier_runs(store, "t") == ours[::-1][:HISTORY]


def test_records_that_cannot_be_read_are_left_out(store: Store, caplog: pytest.LogCaptureFixture):
    good = [run_number(1), run_number(9)]
    for run in good:
        write_run(store, run)
    damaged = {
        2: b"",
        3: b"[]",
        4: b'{"id": "x"}',
        5: store.read(f"{run_folder(good[0].id)}/run.json").replace(b"embed", b"emBed"),
    }
    for number, content in damaged.items():
        store.create(f"{run_folder(run_number(number).id)}/run.json", content)
    store.replace_json(f"{run_folder(run_number(6).id)}/run.json", {**asdict(run_number(6)), "of_a_newer": 1})
    store.create(f"{run_folder(run_number(7).id)}/report.html", b"")  # and no record
    assert earlier_runs(store, "t") == good[::-1]
    assert sorted(line.args[0] for line in caplog.records) == [run_number(number).id for number in range(2, 8)]


def test_a_brief_is_part_of_the_record():
    run = replace(FIRST_RUN, exit_status=3, message="why", counts={"rows_in": 7})
    assert brief(run).items() <= asdict(run).items()
    assert {"id", "exit_status", "message", "counts"} <= brief(run).keys()
