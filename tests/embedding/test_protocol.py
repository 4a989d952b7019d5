"""The commit protocol under thousands of interleavings: two writers, crashes, pauses, clocks that jump, new sources.

On a store in memory. Every row of the source exactly once, none invented, no file of a live receipt removed.
"""

import contextlib
import itertools
import json

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline import lease as lease_module
from pipeline.embedding.plan import Shard, cut
from pipeline.embedding.receipts import Ledger
from pipeline.errors import IncompleteError, LeaseHeldError
from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import Unit, live_receipts, read_receipts

FOLDER = "embeddings/t"
UNIT_ROWS = 4
WRITERS = st.integers(0, 1)
SILENCES = st.sampled_from([20.0, 61.0, 200.0])
SHARDS = st.sampled_from(["/a.parquet", "/b.parquet", "/c.parquet"])


def nothing() -> None:
    """Do nothing."""


class MemoryStore(Store):
    """A store whose files are a dict, shared by all writers; each call happens at once or not at all."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.url, self.is_local, self.has_conditions = "memory", False, True
        self.contents = files
        self.before_create = self.after_listing = nothing

    def read(self, relative: str) -> bytes:
        if relative not in self.contents:
            raise FileNotFoundError(relative)
        return self.contents[relative]

    def read_many(self, folder: str, suffix: str) -> dict[str, bytes]:
        return {path: self.contents[f"{folder}/{path}"] for path in self.files(folder) if path.endswith(suffix)}

    def files(self, folder: str) -> dict[str, int]:
        start = f"{folder}/"
        found = self.under(start)
        if folder.endswith("/receipts"):  # the last that is listed
            pause, self.after_listing = self.after_listing, nothing
            pause()
        return found

    def under(self, start: str) -> dict[str, int]:
        return {path[len(start) :]: len(self.contents[path]) for path in self.contents if path.startswith(start)}

    def exists(self, relative: str) -> bool:
        return relative in self.contents

    def create(self, relative: str, content: bytes) -> None:
        pause, self.before_create = self.before_create, nothing
        pause()
        if relative in self.contents:
            raise FileExistsError(relative)
        self.contents[relative] = content

    def replace(self, relative: str, content: bytes) -> None:
        self.contents[relative] = content

    def remove(self, relative: str) -> None:
        self.contents.pop(relative, None)


class Writer:
    """A run: what it planned, the parts it wrote that its driver has not heard of, and its lease."""

    def __init__(self, files: dict[str, bytes], shards: dict[str, Shard], numbers: itertools.count) -> None:
        self.store = MemoryStore(files)
        self.numbers = numbers
        self.lease = Lease(self.store, FOLDER)
        self.lease.take()
        self.units = cut(tuple(shards.values()), UNIT_ROWS)
        self.ledger = Ledger(self.store, FOLDER, shards, self.units, self.lease)
        self.ledger.retire_lost()
        self.written: list[dict] = []
        self.next_row = {unit.id: unit.first_row for unit in self.ledger.pending}

    def write(self, choice: int, rows: int) -> None:
        """Write the next rows of some pending unit, as any attempt of any task may."""
        open_units = [unit for unit in self.units if unit.id in self.next_row]
        if not open_units:
            return
        unit = open_units[choice % len(open_units)]
        first = self.next_row[unit.id]
        count = min(rows, unit.first_row + unit.rows - first)
        path = f"data/{next(self.numbers)}"
        rows_of_file = [[unit.shard, unit.state, first + i] for i in range(count)]
        self.store.replace(f"{FOLDER}/{path}", json.dumps(rows_of_file).encode())
        self.written.append(part(unit, first, count, path))
        self.next_row[unit.id] += count
        if self.next_row[unit.id] == unit.first_row + unit.rows:
            del self.next_row[unit.id]

    def report(self, choice: int) -> None:
        """Let the driver hear of a part."""
        if self.written:
            self.ledger.add(self.written.pop(choice % len(self.written)))

    def finish(self, removes: bool) -> None:
        """End as a run does whose units are all there, or not yet."""
        old = self.ledger.replaced() + (self.ledger.removed(()) if removes else [])
        self.ledger.retire(old)
        self.ledger.remove_unnamed_files()
        self.lease.release()


def part(unit: Unit, first: int, count: int, path: str) -> dict:
    file = {"path": path, "rows": count, "bytes": 1, "sha256": "0"}
    nothing = {
        "rejected": 0,
        "reused": 0,
        "reasons": [],
        "encoders": [],
        "rejects": [],
        "unreadable": None,
        "failed": None,
    }
    return {"unit": unit.id, "first_row": first, "rows": count, "embedded": count, "data": [file], **nothing}


def somebody_writes(machine: "Protocol") -> bool:
    return any(machine.writers)


def somebody_may_start(machine: "Protocol") -> bool:
    return bool(machine.shards) and not all(machine.writers)


class Protocol(RuleBasedStateMachine):
    """What may happen, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, bytes] = {}
        self.numbers = itertools.count()
        self.clock_s = 1000.0
        self.skew_s = 0.0
        self.shards: dict[str, Shard] = {}
        self.gone: set[str] = set()  # shards that the source did not have at some time
        self.whole: set[str] = set()  # shards that were in the table to the last row
        self.writers: list[Writer | None] = [None, None]
        lease_module.time.time = lambda: self.clock_s + self.skew_s
        lease_module.time.sleep = self.sleep
        lease_module._clock_s = lambda: self.clock_s

    def sleep(self, seconds: float) -> None:
        """Let time pass in which whoever lives renews."""
        self.clock_s += seconds
        for writer in self.writers:
            if writer is not None and not getattr(writer, "is_paused", False):
                self.beat_of(writer)

    def beat_of(self, writer: Writer) -> None:
        if writer.lease._newest() != writer.lease.number:
            writer.lease.lost = "was taken over by another run"
        else:
            writer.lease.renew()

    @initialize(groups=st.lists(st.integers(1, 5), min_size=1, max_size=3))
    def begin(self, groups: list[int]) -> None:
        for shard in ("/a.parquet", "/b.parquet"):
            self.write_or_rewrite_shard(shard, groups)

    @rule(shard=SHARDS, groups=st.lists(st.integers(1, 5), min_size=1, max_size=3))
    def write_or_rewrite_shard(self, shard: str, groups: list[int]) -> None:
        state = f"state-{next(self.numbers)}"
        self.shards[shard] = Shard(shard, 1, state, tuple(groups), 1, 0, state)

    @rule(shard=SHARDS)
    def remove_shard(self, shard: str) -> None:
        self.shards.pop(shard, None)
        self.gone.add(shard)

    @precondition(somebody_may_start)
    @rule(who=WRITERS)
    def start(self, who: int) -> None:
        if self.writers[who] is None and self.shards:
            with contextlib.suppress(LeaseHeldError):
                self.writers[who] = Writer(self.files, dict(self.shards), self.numbers)

    @precondition(somebody_writes)
    @rule(who=WRITERS, choice=st.integers(0, 5), rows=st.integers(1, 5), times=st.integers(1, 6))
    def write(self, who: int, choice: int, rows: int, times: int) -> None:
        writer = self.writers[self.active(who)]
        for _ in range(times):
            writer.write(choice, rows)

    @precondition(somebody_writes)
    @rule(who=WRITERS, choice=st.integers(0, 5), times=st.integers(1, 6))
    def report(self, who: int, choice: int, times: int) -> None:
        who = self.active(who)
        for _ in range(times):
            self.attempt(who, lambda writer: writer.report(choice))

    @precondition(somebody_writes)
    @rule(who=WRITERS, silent_s=SILENCES, change=st.sampled_from(["none", "rewrite", "remove"]))
    def pause_between_check_and_put(self, who: int, silent_s: float, change: str) -> None:
        """Stop a writer just before a receipt is put; let the other take over, if it can, and do all its work."""
        who = self.active(who)
        writer = self.writers[who]
        writer.store.before_create = lambda: self.meanwhile(who, silent_s, change)
        for _ in range(20):  # until a unit is whole
            if writer.store.before_create is nothing or self.writers[who] is not writer:
                break
            writer.write(0, 5)
            self.attempt(who, lambda writer: writer.report(0))
        writer.store.before_create = nothing

    @precondition(somebody_writes)
    @rule(who=WRITERS, silent_s=SILENCES, change=st.sampled_from(["none", "rewrite", "remove"]))
    def pause_before_files_go(self, who: int, silent_s: float, change: str) -> None:
        """Stop a writer that has looked what it may remove; let the other take over, if it can, and write on."""
        who = self.active(who)
        self.writers[who].store.after_listing = lambda: self.meanwhile(who, silent_s, change, is_done=False)
        self.end(who, removes=True)

    def meanwhile(self, who: int, silent_s: float, change: str, is_done: bool = True) -> None:
        """Do what the other does while a writer is paused."""
        writer = self.writers[who]
        if writer is None:
            return
        writer.is_paused = True
        self.clock_s += silent_s
        for shard in sorted(self.shards)[:2]:
            if change == "rewrite":
                self.write_or_rewrite_shard(shard, [3, 2])
            elif change == "remove":
                self.remove_shard(shard)
        self.writers[1 - who] = None
        self.start(1 - who)
        if is_done:
            self.do_all(1 - who)
        elif (other := self.writers[1 - who]) is not None:
            for _ in range(8):
                other.write(0, 5)
                self.attempt(1 - who, lambda writer: writer.report(0))
        writer.is_paused = False

    @precondition(somebody_writes)
    @rule(who=WRITERS, removes=st.booleans())
    def finish(self, who: int, removes: bool) -> None:
        self.end(self.active(who), removes)

    @precondition(somebody_writes)
    @rule(who=WRITERS)
    def complete(self, who: int) -> None:
        self.do_all(self.active(who))

    @precondition(somebody_writes)
    @rule(who=WRITERS)
    def crash(self, who: int) -> None:
        self.writers[self.active(who)] = None

    @precondition(somebody_writes)
    @rule(who=WRITERS)
    def beat(self, who: int) -> None:
        self.beat_of(self.writers[self.active(who)])

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0, 1000.0]))
    def time_passes_without_a_beat(self, seconds: float) -> None:
        self.clock_s += seconds

    @rule(skew_s=st.sampled_from([-86400.0, -61.0, 0.0, 61.0, 86400.0]))
    def clock_jumps(self, skew_s: float) -> None:
        self.skew_s = skew_s

    def active(self, who: int) -> int:
        """Choose a writer that there is."""
        return who if self.writers[who] is not None else 1 - who

    def end(self, who: int, removes: bool) -> None:
        self.attempt(who, lambda writer: writer.finish(removes))
        self.writers[who] = None

    def do_all(self, who: int) -> None:
        """Do all that a writer planned, and end it."""
        writer = self.writers[who]
        while self.writers[who] is not None and (writer.next_row or writer.written):
            writer.write(0, 5)
            self.attempt(who, lambda writer: writer.report(0))
        if self.writers[who] is not None:
            self.end(who, removes=True)

    def attempt(self, who: int, act) -> None:
        """Let a writer act; one that finds out that it may no longer is gone."""
        writer = self.writers[who]
        if writer is None:
            return
        try:
            act(writer)
        except IncompleteError:
            if self.writers[who] is writer:
                self.writers[who] = None

    def rows(self) -> list[list]:
        live = live_receipts(read_receipts(MemoryStore(self.files), FOLDER).values())
        return [
            row for r in live.values() for file in r.data for row in json.loads(self.files[f"{FOLDER}/{file.path}"])
        ]

    @invariant()
    def live_receipts_name_files_that_are_there_and_rows_once(self) -> None:
        rows = [tuple(row) for row in self.rows()]  # a file that is gone is a KeyError
        assert len(rows) == len(set(rows))
        assert len({(shard, state) for shard, state, _ in rows}) == len({shard for shard, _, _ in rows})

    @invariant()
    def a_shard_that_was_whole_stays_whole_in_one_state_or_another(self) -> None:
        live = live_receipts(read_receipts(MemoryStore(self.files), FOLDER).values())
        rows = {r.shard: sum(o.rows_in for o in live.values() if o.shard == r.shard) for r in live.values()}
        is_whole = {r.shard: rows[r.shard] == r.shard_rows for r in live.values()}
        assert all(is_whole.get(shard, shard in self.gone) for shard in self.whole)
        self.whole = (self.whole & rows.keys()) | {shard for shard in is_whole if is_whole[shard]}

    def teardown(self) -> None:
        """Whatever happened: one more run, left alone, ends with exactly the source's rows and no other file."""
        self.writers, self.skew_s = [None, None], 0.0
        self.clock_s += 86400 * 3
        for _ in range(3):  # the first may find files missing, and says so
            self.start(0)
            self.do_all(0)
        if self.shards:
            wanted = [[s.url, s.state, row] for s in self.shards.values() for row in range(s.rows)]
            assert sorted(self.rows()) == sorted(wanted)
            receipts = read_receipts(MemoryStore(self.files), FOLDER).values()
            named = {f"{FOLDER}/{file.path}" for receipt in receipts for file in receipt.data}
            assert {path for path in self.files if "/data/" in path} == named


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the clocks back that the machine sets."""
    monkeypatch.setattr(lease_module, "_clock_s", lease_module._clock_s)
    real_time = type("Time", (), {**{name: getattr(lease_module.time, name) for name in dir(lease_module.time)}})
    monkeypatch.setattr(lease_module, "time", real_time)
    monkeypatch.setattr(lease_module, "_process_identity", lambda pid: None)  # all writers are this process


@pytest.mark.usefixtures("clocks")
def test_every_row_once_and_no_live_file_removed_in_thousands_of_interleavings():
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=2000,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
