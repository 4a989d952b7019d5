import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from pipeline import lease as lease_module
from pipeline.errors import IncompleteError, LeaseHeldError
from pipeline.lease import Lease, holder
from pipeline.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def newest(store: Store) -> tuple[str, dict]:
    name = max(store.files("table/lease"))
    return name, store.read_json(f"table/lease/{name}")


def foreign(store: Store, **changes: object) -> None:
    """Make the lease look as if a process of another machine held it."""
    name, held = newest(store)
    held.update({"process": ["other-boot", "ns", "1"], "host": "elsewhere", "released": False, **changes})
    store.replace(f"table/lease/{name}", json.dumps(held).encode())


def test_a_second_owner_is_refused_and_told_who_the_first_is(store: Store):
    with Lease(store, "table"), pytest.raises(LeaseHeldError, match=r"process \d+ on"), Lease(store, "table"):
        pass


def test_a_released_lease_is_free_and_old_numbers_go(store: Store):
    for _ in range(3):
        with Lease(store, "table"):
            pass
    assert list(store.files("table/lease")) == ["000003.json"]


def test_of_many_that_find_it_free_one_gets_it(store: Store):
    entered, refused, ready = [], [], threading.Barrier(8)

    def attempt() -> None:
        ready.wait()
        try:
            with Lease(store, "table"):
                entered.append(1)
                time.sleep(0.3)  # held while the others try
        except LeaseHeldError:
            refused.append(1)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 7)


def test_a_process_that_died_on_this_machine_holds_nothing(store: Store):
    code = f"""
import os
from pipeline.lease import Lease
from pipeline.store import Store
Lease(Store({store.url!r}), "table").__enter__()
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False)
    assert newest(store)[1]["released"] is False
    with Lease(store, "table"):
        assert newest(store)[0] == "000002.json"


def test_a_live_lease_of_another_machine_counts_until_it_expires(store: Store):
    with Lease(store, "table"):
        pass
    foreign(store, renewed_s=time.time())
    with pytest.raises(LeaseHeldError, match="elsewhere"), Lease(store, "table"):
        pass
    foreign(store, renewed_s=time.time() - 61, expires_s=0.1, renew_s=0.05)
    with Lease(store, "table"):
        pass


def test_the_heart_renews(store: Store):
    with Lease(store, "table", renew_s=0.05):
        first = newest(store)[1]["renewed_s"]
        deadline = time.monotonic() + 5
        while newest(store)[1]["renewed_s"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert newest(store)[1]["renewed_s"] > first


def test_an_owner_that_was_taken_over_stops_before_its_next_commit(store: Store):
    with Lease(store, "table", renew_s=0.05) as lease:
        lease.check()
        store.create("table/lease/000002.json", json.dumps({"released": False, "token": "x"}).encode())
        deadline = time.monotonic() + 5
        while lease.lost is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(IncompleteError, match="taken over"):
            lease.check()
    assert store.read_json("table/lease/000002.json") == {"released": False, "token": "x"}


def test_an_owner_that_could_not_renew_stops_before_its_lease_runs_out(store: Store):
    with Lease(store, "table", expires_s=0.2, renew_s=10) as lease:
        time.sleep(0.01)
        lease.expires_s = 10.0
        with pytest.raises(IncompleteError, match="could not be renewed"):
            lease.check()


def test_a_lease_whose_creation_was_answered_with_an_error_is_still_ours(store: Store, monkeypatch: pytest.MonkeyPatch):
    create = Store.create

    def created_and_denied(self: Store, relative: str, content: bytes) -> None:
        create(self, relative, content)
        raise FileExistsError(relative)  # as a retried PUT of a first that had arrived

    monkeypatch.setattr(Store, "create", created_and_denied)
    with Lease(store, "table") as lease:
        lease.confirm()
    assert newest(store)[1]["released"] is True


def test_an_owner_that_slept_is_found_out_before_it_removes_anything(store: Store):
    with Lease(store, "table") as lease:
        store.create("table/lease/000002.json", json.dumps({"released": False, "token": "x"}).encode())
        lease.check()  # its heart has not beaten since
        with pytest.raises(IncompleteError, match="taken over"):
            lease.confirm()


@contextlib.contextmanager
def repeated(call: Callable[[], None], every_s: float) -> Iterator[None]:
    """Make a call again and again in a thread, as a heart does."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(every_s):
            call()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


AN_HOUR_OFF = pytest.mark.parametrize("skew_s", [-3600, 3600])


@AN_HOUR_OFF
def test_an_owner_whose_clock_is_wrong_keeps_its_lease_while_its_heart_beats(store: Store, skew_s: float):
    with Lease(store, "table"):
        pass

    def renew() -> None:
        foreign(store, renewed_s=time.time() + skew_s, renew_s=0.25)

    renew()
    with repeated(renew, 0.02), pytest.raises(LeaseHeldError, match="elsewhere"), Lease(store, "table"):
        pass
    assert newest(store)[0] == "000001.json"


@AN_HOUR_OFF
def test_a_silent_owner_is_taken_over_after_the_time_of_its_lease_and_not_before(store: Store, skew_s: float):
    with Lease(store, "table"):
        pass
    foreign(store, renewed_s=time.time() + skew_s, expires_s=0.3, renew_s=0.15)
    began = time.monotonic()
    with Lease(store, "table"):
        assert time.monotonic() - began >= 0.3
        assert newest(store)[0] == "000002.json"
        assert newest(store)[1]["host"] != "elsewhere"


def test_an_owner_that_never_said_how_often_it_renews_is_given_the_usual_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    with Lease(store, "table"):
        pass
    foreign(store, renewed_s=0, expires_s=0.2)
    name, held = newest(store)
    del held["renew_s"]  # as the first format
    store.replace(f"table/lease/{name}", json.dumps(held).encode())
    monkeypatch.setattr(lease_module, "RENEW_S", 0.1)
    began = time.monotonic()
    with Lease(store, "table"):
        assert time.monotonic() - began >= 0.2


def test_of_several_that_watch_a_silent_owner_one_gets_its_lease(store: Store):
    with Lease(store, "table"):
        pass
    foreign(store, renewed_s=0, expires_s=0.2, renew_s=0.1)
    entered, refused, ready, over = [], [], threading.Barrier(4), threading.Barrier(4)

    def attempt() -> None:
        ready.wait()
        try:
            with Lease(store, "table"):
                entered.append(1)
                over.wait()
        except LeaseHeldError:
            refused.append(1)
            over.wait()

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 3)


def test_the_holder_is_named_while_there_is_one(store: Store):
    assert holder(store, "table") is None
    with Lease(store, "table") as lease:
        said = holder(store, "table")
        assert said is not None
        assert said.startswith("process ")
        assert said.endswith(f"since {lease.since}")
        assert holder(store, "other") is None
    assert holder(store, "table") is None


@pytest.mark.parametrize(
    ("changes", "is_held"),
    [
        ({}, True),
        ({"renewed_s": 0}, False),
        ({"released": True}, False),
        ({"process": None}, True),
    ],
)
def test_the_holder_on_another_machine_is_named_until_it_falls_silent(store: Store, changes: dict, is_held: bool):
    with Lease(store, "table"):
        pass
    foreign(store, **{"renewed_s": time.time(), **changes})
    assert (holder(store, "table") is not None) == is_held


def test_nobody_holds_what_a_dead_process_of_this_machine_held(store: Store):
    with Lease(store, "table"):
        name, held = newest(store)
    dead = {**held, "process": [*held["process"][:2], "1"], "released": False, "renewed_s": time.time()}
    store.replace(f"table/lease/{name}", json.dumps(dead).encode())
    assert holder(store, "table") is None
    store.replace(f"table/lease/{name}", json.dumps({**dead, "process": held["process"]}).encode())
    assert holder(store, "table") is not None  # so it was the process


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")]
)
def test_a_lease_that_cannot_be_released_does_not_hide_what_ended_the_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception
):
    def fails(self: Store, relative: str, content: bytes) -> None:
        raise failure

    monkeypatch.setattr(Store, "replace", fails)
    with pytest.raises(IncompleteError, match="3 rows missing"), Lease(store, "table"):
        raise IncompleteError("3 rows missing")
    assert "lease=table/lease not released" in caplog.text
    monkeypatch.undo()
    assert newest(store)[1]["released"] is False


def test_a_lease_that_cannot_be_released_makes_no_good_end_a_bad_one(store: Store, monkeypatch: pytest.MonkeyPatch):
    def fails(self: Store, relative: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with Lease(store, "table"):
        monkeypatch.setattr(Store, "replace", fails)
    assert newest(store)[1]["released"] is False
