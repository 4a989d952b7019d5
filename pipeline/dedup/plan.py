"""What is to be compared, and by what: one version of a table's index, its rows, and the parameters.

In: a `DedupConfig`. Out: a `Plan` with an id that the same rows and parameters always have, so that what is there
already is found again.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DedupConfig, RunConfig
from pipeline.dedup.pieces import Job, digest
from pipeline.errors import InputError
from pipeline.indexing import vectors
from pipeline.indexing.made import live_ids
from pipeline.indexing.vectors import Span
from pipeline.searching.index import OpenIndex, open_index
from pipeline.store import Store
from pipeline.table import TableRecord, live_receipts, read_receipts, read_record, table_folder

FORMAT = 4  # of all that is written: another one has other ids


@dataclass(frozen=True)
class Plan:
    """What is compared."""

    config: DedupConfig
    store: Store
    table: str
    record: TableRecord
    index: OpenIndex
    spans: list[Span]  # as the table has them now
    id: str

    @property
    def folder(self) -> str:
        """Where all of it rests."""
        return f"{duplicates_folder(self.table)}/{self.id}"

    @property
    def work(self) -> str:
        """Where pieces lie until it is done."""
        return f"{self.folder}/work"

    @property
    def place(self) -> tuple[str, str, str]:
        """Give what a task opens the index by: the store's URL, the table, the version."""
        return self.store.url, self.table, self.index.card.version

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The vector ids of all rows, ascending."""
        return np.sort(live_ids(self.spans))

    @property
    def floor(self) -> float:
        """The similarity from which on pairs of vectors are found: some below the threshold, to look at."""
        return self.config.threshold - self.config.look_below


def duplicates_folder(table: str) -> str:
    """Give the folder of a table's duplicates below the store's root."""
    return f"duplicates/{table}"


def plan(config: DedupConfig, store: Store, table: str) -> Plan:
    """Open the published version, and see to it that it has the rows that the table has.

    Raises:
        InputError: nothing is published, the table has changed since, or a column to keep by is not there.
        IncompleteError: a file of the index is missing or damaged.
    """
    record = read_record(store, table)
    index = open_index(store, table)
    receipts = live_receipts(read_receipts(store, table_folder(table)).values()).values()
    kept, new = vectors.changes(index.spans, receipts, index.card.end)
    if record is None or new or len(kept) < len(index.spans):
        raise InputError(f"table {table}: changed since its index was built; run python -m jobs.build_index")
    _check(config, record)
    asked = config.model_dump(mode="json", exclude=set(RunConfig.model_fields))
    name = digest([FORMAT, table, index.card.version, asked])[:16]
    return Plan(config, store, table, record, index, kept, name)


@lru_cache(maxsize=1)
def opened(store_url: str, table: str, version: str) -> OpenIndex:
    """Open an index in a task; the next task of the same process finds it open."""
    return open_index(Store(store_url), table, version)


def span_jobs(plan: Plan, name: str, spans: list[Span], rows: int, asked: str) -> list[Job]:
    """Want a piece of every run of some units of about so many rows: its function takes the table and the units."""
    groups = vectors.divide(spans, -(-vectors.count(spans) // rows))
    return [
        Job(
            f"{plan.work}/{name}/{group[0].base:012d}",
            (plan.table, group),
            digest([[span.receipt.unit, span.base, span.rows] for span in group], asked),
        )
        for group in groups
    ]


def _check(config: DedupConfig, record: TableRecord) -> None:
    name = config.keep.removeprefix("column:")
    if config.keep.startswith("column:") and name not in record.kept:
        kept = ", ".join(record.kept) or "none"
        raise InputError(f"keep: no column {name!r} was kept of the source; kept columns: {kept}")
    if "exact" in config.stages and not record.content_hashes and config.stages == ("exact",):
        raise InputError("stages: the table keeps no content hashes, and no other stage is asked for")
