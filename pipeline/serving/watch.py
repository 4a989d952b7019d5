"""How the tables that are served stand in their store: indexes, runs, leases. Looked at now and then, for Prometheus.

In: the store. Out: gauges. A batch run's own metrics end with its driver, and one that never started has none; the
endpoint lives on, and so it tells of them. Reads cards, records and leases, no receipts: a few requests a minute.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline.indexing.publish import Card, index_folder, read_card, read_current, versions
from pipeline.lease import held_since_s
from pipeline.runs import HISTORY, RUNS, Run, read_run
from pipeline.schema import counted_as_bad
from pipeline.serving.telemetry import Telemetry, put
from pipeline.store import Store
from pipeline.table import table_folder

RECORDS = 200  # of runs of whatever table that are read at most: once each, but for the newest
PUBLISHED, NEWEST = "published", "newest"


@dataclass(frozen=True)
class Counted:
    """What a run that embeds counted at its end."""

    rows: int  # of the table, with a vector
    reject_fraction: float  # of the source's rows
    reject_limit: float


@dataclass(frozen=True)
class Outcome:
    """What a run's record says, in short."""

    table: str | None
    command: str
    started_s: float  # since 1970
    ended_s: float
    exit_status: int | None  # None: still running, or killed
    counted: Counted | None


class Watch:
    """Tells of some tables of a store; remembers the records and cards that it has read."""

    def __init__(self, store: Store, tables: Iterable[str], telemetry: Telemetry) -> None:
        self.store, self.tables, self.telemetry = store, tuple(tables), telemetry
        self.outcomes: dict[str, Outcome | None] = {}  # by run, of those that change no more
        self.cards: dict[str, dict[str, Card]] = {}  # by table and version

    def look(self) -> None:
        """Read how the tables stand now.

        Raises:
            RunError, or one of the store's errors: something cannot be read; the rest is as it was.
        """
        outcomes = self._outcomes()
        for table in self.tables:
            self._note_runs(table, [outcome for outcome in outcomes if outcome.table == table])
            self._note_leases(table)
            self._note_indexes(table)
        self.telemetry.looked.set(time.time())

    def _outcomes(self) -> list[Outcome]:
        """Read the records of the newest runs, the newest first."""
        names = sorted(self.store.folders(RUNS), reverse=True)[:RECORDS]
        found: dict[str, Outcome | None] = {}
        for place, name in enumerate(names):
            if name in self.outcomes:
                found[name] = self.outcomes[name]
                continue
            run = read_run(self.store, name)
            found[name] = outcome = None if run is None else outcome_of(run)
            # One that has not ended may yet; one that was killed never does, and is read until it is an old one.
            if place >= HISTORY or (outcome is not None and outcome.exit_status is not None):
                self.outcomes[name] = outcome
        self.outcomes = {name: outcome for name, outcome in self.outcomes.items() if name in found}
        return [outcome for outcome in found.values() if outcome is not None]

    def _note_runs(self, table: str, outcomes: Sequence[Outcome]) -> None:
        """Note the last runs of a table; ``outcomes`` are the newest first."""
        told = self.telemetry
        of = {outcome.command: [o for o in outcomes if o.command == outcome.command] for outcome in outcomes}
        ended = {command: [o for o in runs if o.exit_status is not None] for command, runs in of.items()}
        well = {command: [o.ended_s for o in runs if o.exit_status == 0] for command, runs in of.items()}
        put(told.run_started, table, {(command,): runs[0].started_s for command, runs in of.items()})
        put(told.run_success, table, {(command,): max(times, default=0.0) for command, times in well.items()})
        put(told.run_status, table, {(command,): runs[0].exit_status for command, runs in ended.items() if runs})
        for counted in [outcome.counted for outcome in outcomes if outcome.counted is not None][:1]:
            told.table_rows.labels(table).set(counted.rows)
            told.rejected.labels(table).set(counted.reject_fraction)
            told.reject_limit.labels(table).set(counted.reject_limit)

    def _note_leases(self, table: str) -> None:
        folders = {"embeddings": table_folder(table), "indexes": index_folder(table)}
        put(
            self.telemetry.lease_since,
            table,
            {(name,): held_since_s(self.store, folder) for name, folder in folders.items()},
        )

    def _note_indexes(self, table: str) -> None:
        current, built = read_current(self.store, table), versions(self.store, table)
        named = {PUBLISHED: current, NEWEST: built[0] if built else None}
        known = self.cards.get(table, {})
        cards = {
            index: known.get(version) or read_card(self.store, table, version)
            for index, version in named.items()
            if version is not None
        }
        self.cards[table] = {card.version: card for card in cards.values()}
        put(
            self.telemetry.recall,
            table,
            {(i, queries): value for i, card in cards.items() for queries, value in card.recall_at_10.items()},
        )
        put(self.telemetry.recall_target, table, {(index,): card.recall_target for index, card in cards.items()})
        put(self.telemetry.index_rows, table, {(index,): card.ntotal for index, card in cards.items()})


def outcome_of(run: Run) -> Outcome:
    """Put a record in short."""
    started_s = datetime.fromisoformat(run.started).timestamp()
    return Outcome(run.table, run.job, started_s, started_s + run.seconds, run.exit_status, _counted(run))


def _counted(run: Run) -> Counted | None:
    rows = run.source.get("rows")
    if not rows or "reasons" not in run.counts or "max_reject_fraction" not in run.config:
        return None  # of a run that embeds nothing
    fraction = counted_as_bad(run.counts["reasons"]) / rows
    return Counted(run.counts["embedded"], fraction, run.config["max_reject_fraction"])
