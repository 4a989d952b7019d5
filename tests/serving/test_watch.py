"""What an endpoint tells of runs, leases and indexes that it has no part in: from a store, without Ray."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.indexing.publish import Card, index_folder, write_card
from pipeline.lease import Lease
from pipeline.runs import Run, run_folder, write_run
from pipeline.serving.telemetry import Telemetry
from pipeline.serving.watch import Watch
from pipeline.store import Store
from pipeline.table import table_folder

T = "t"
NIGHT_S = 86400


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def record(
    store: Store, night: int, status: int | None, job: str = "jobs.backfill", table: str = T, **found: Any
) -> Run:
    """The record of a run that began so many nights after 1970 and took a minute."""
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(night * NIGHT_S))
    name = text.replace("-", "").replace(":", "") + f"-{table}"
    run = Run(name, job, text, {"max_reject_fraction": 0.1}, {}, None, table, 60.0, status, **found)
    write_run(store, run)
    return run


def counted(rejects: Mapping[str, int], embedded: int, rows: int) -> dict[str, Any]:
    return {"counts": {"embedded": embedded, "reasons": rejects}, "source": {"rows": rows}}


def card(version: str, recall: Mapping[str, float], rows: int = 10) -> Card:
    fields: dict[str, Any] = dict.fromkeys(Card.__dataclass_fields__)
    mine = {"version": version, "table": T, "recall_at_10": recall, "recall_target": 0.9, "ntotal": rows, "files": {}}
    return Card(**{**fields, **mine, "queries": {}, "margin": None})


def publish(store: Store, version: str) -> None:
    store.replace(f"{index_folder(T)}/CURRENT", f"{version}\n".encode())


class Looking:
    """A watch of one table, and the values that it has set."""

    def __init__(self, store: Store, tables: tuple[str, ...] = (T,)) -> None:
        self.telemetry = Telemetry()
        self.watch = Watch(store, tables, self.telemetry)

    def look(self) -> dict[tuple[str, ...], float]:
        """Values by short name and labels after the table."""
        self.watch.look()
        return {
            (name.removeprefix("rayclip_"), *(value for label, value in labels if label != "table")): value
            for (name, labels), value in self.telemetry.series().items()
        }


def test_an_empty_store_has_nothing_to_tell_but_that_it_was_looked_at(store: Store):
    told = Looking(store).look()
    assert told["watch_timestamp_seconds",] == pytest.approx(time.time(), abs=60)
    assert {
        name for name, *_ in told if name.startswith(("run_", "index_re", "index_rows", "lease", "reject"))
    } == set()


def test_the_last_success_is_told_whatever_came_after_it(store: Store):
    looking = Looking(store)
    record(store, 1, 0)
    record(store, 2, 0, job="jobs.compact")
    record(store, 3, 3)
    record(store, 4, None)  # killed
    record(store, 5, 0, table="another")
    told = looking.look()
    assert told["run_success_timestamp_seconds", "jobs.backfill"] == NIGHT_S + 60
    assert told["run_exit_status", "jobs.backfill"] == 3
    assert told["run_start_timestamp_seconds", "jobs.backfill"] == 4 * NIGHT_S
    assert told["run_success_timestamp_seconds", "jobs.compact"] == 2 * NIGHT_S + 60
    record(store, 6, 0)
    assert looking.look()["run_success_timestamp_seconds", "jobs.backfill"] == 6 * NIGHT_S + 60


def test_a_command_that_never_ended_well_is_overdue_since_1970(store: Store):
    record(store, 3, None)
    told = Looking(store).look()
    assert told["run_success_timestamp_seconds", "jobs.backfill"] == 0
    assert ("run_exit_status", "jobs.backfill") not in told


def test_a_run_that_goes_on_is_read_again_until_it_ends_and_then_no_more(store: Store):
    looking = Looking(store)
    run = record(store, 1, None)
    assert looking.look()["run_success_timestamp_seconds", "jobs.backfill"] == 0
    record(store, 1, 0)
    assert looking.look()["run_success_timestamp_seconds", "jobs.backfill"] == NIGHT_S + 60
    store.replace(f"{run_folder(run.id)}/run.json", b"damaged")
    assert looking.look()["run_success_timestamp_seconds", "jobs.backfill"] == NIGHT_S + 60
    assert ("run_success_timestamp_seconds", "jobs.backfill") not in Looking(store).look()  # who must read it cannot


def test_rejects_are_those_of_the_last_run_that_counted_without_duplicate_keys(store: Store):
    record(store, 1, 0, **counted({}, 100, 100))
    record(store, 2, 3, **counted({"null": 15, "duplicate_key": 20}, 65, 100))
    record(store, 3, None)
    told = Looking(store).look()
    assert told["reject_fraction",] == 0.15
    assert told["reject_fraction_limit",] == 0.1
    assert told["table_rows",] == 65


def test_what_is_published_and_what_was_refused_are_told_apart(store: Store):
    looking = Looking(store)
    write_card(store, card("1", {"image": 0.95, "text": 0.92}))
    publish(store, "1")
    told = looking.look()
    assert told["index_recall", "published", "text"] == told["index_recall", "newest", "text"] == 0.92
    write_card(store, card("2", {"image": 0.85}, rows=12))
    told = looking.look()
    assert (told["index_recall", "published", "image"], told["index_recall", "newest", "image"]) == (0.95, 0.85)
    assert (told["index_rows", "published"], told["index_rows", "newest"]) == (10, 12)
    assert told["index_recall_target", "newest"] == 0.9
    assert ("index_recall", "newest", "text") not in told  # it was not measured


def test_a_lease_is_told_while_it_is_held(store: Store):
    looking = Looking(store)
    with Lease(store, table_folder(T)) as lease:
        told = looking.look()
        assert told["lease_since_timestamp_seconds", "embeddings"] == pytest.approx(lease.since_s, abs=1)
        assert ("lease_since_timestamp_seconds", "indexes") not in told
    assert ("lease_since_timestamp_seconds", "embeddings") not in looking.look()


def test_tables_do_not_take_each_others_values_away(store: Store):
    record(store, 1, 0)
    record(store, 2, 3, table="another")
    looking = Looking(store, (T, "another"))
    looking.watch.look()
    status = {
        dict(labels)["table"]: value for (name, labels), value in looking.telemetry.series().items() if "exit" in name
    }
    assert status == {T: 0, "another": 3}


def test_a_look_that_fails_does_not_say_that_it_was_one(store: Store):
    looking = Looking(store)
    before = looking.look()["watch_timestamp_seconds",]
    publish(store, "gone")
    with pytest.raises(InputError, match="no such index version"):
        looking.look()
    assert looking.telemetry.series()["rayclip_watch_timestamp_seconds", ()] == before


def test_what_answers_is_up_to_date_only_as_long_as_it_is_what_is_published():
    telemetry = Telemetry()
    telemetry.serves(T, "1", is_refusing=False)
    up_to_date = ("rayclip_index_up_to_date_timestamp_seconds", (("table", T),))
    then = telemetry.series()[up_to_date]
    assert then == pytest.approx(time.time(), abs=60)
    telemetry.serves(T, "1", is_refusing=True)
    assert telemetry.series()[up_to_date] == then
    telemetry.serves(T, "2", is_refusing=False)
    versions = [dict(labels)["version"] for name, labels in telemetry.series() if name == "rayclip_index_serving"]
    assert versions == ["2"]
