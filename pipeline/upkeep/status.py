"""What a table holds, what is left to do, who is at it, and how the last runs ended: from receipts and records alone.

In: a store and a table. Out: a `Status`. The source is not asked: what is planned is what the last run saw of it.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.config import SourceConfig, StatusConfig
from pipeline.embedding.plan import cut
from pipeline.embedding.shards import read_shards
from pipeline.indexing.publish import index_folder, read_card, read_current, versions
from pipeline.lease import holder
from pipeline.runs import brief, earlier_runs
from pipeline.store import Store
from pipeline.table import find_table, live_receipts, read_receipts, read_record, reasons_of, table_folder


@dataclass(frozen=True)
class Status:
    """How a table stands."""

    table: str
    space: str
    model: str
    d: int
    shards: int  # that the last run saw
    rows: int  # of these
    rows_done: int
    units: int
    units_pending: int
    units_stale: int  # of earlier states of shards, or of shards that are gone
    embedded: int  # in the table as it is
    rejected: int
    reasons: dict[str, int]
    bytes: int  # of data files
    writer: str | None  # who holds the lease
    # version, factory, ntotal, recall_at_10, advice, all versions, has_all_rows: whether it has as many as the table
    index: dict[str, Any] | None
    runs: list[dict[str, Any]]  # the newest first


def status(config: StatusConfig) -> Status:
    """Read how a table stands.

    Raises:
        InputError: there is no such table, or a receipt or record is damaged.
    """
    store = Store(config.store)
    table = find_table(store, config.table)
    folder = table_folder(table)
    record = read_record(store, table)
    receipts = read_receipts(store, folder)
    live = live_receipts(receipts.values())
    shards = read_shards(store, folder, _source(store, folder))
    units = cut(tuple(shards.values()), record.unit_rows) if record is not None else []
    planned = {unit.id for unit in units}
    return Status(
        table=table,
        space=record.space if record else "",
        model=record.model_id if record else "",
        d=record.d if record else 0,
        shards=len(shards),
        rows=sum(shard.rows for shard in shards.values()),
        rows_done=sum(unit.rows for unit in units if unit.id in receipts),
        units=len(units),
        units_pending=len(planned - receipts.keys()),
        units_stale=len(receipts.keys() - planned) if shards else 0,
        embedded=sum(receipt.embedded for receipt in live.values()),
        rejected=sum(receipt.rejected for receipt in live.values()),
        reasons=dict(sorted(reasons_of(live.values()).items())),
        bytes=sum(file.bytes for receipt in live.values() for file in receipt.data),
        writer=holder(store, folder) or holder(store, index_folder(table)),
        index=_index(store, table, sum(receipt.embedded for receipt in live.values())),
        runs=[brief(run) for run in earlier_runs(store, table)],
    )


def _source(store: Store, folder: str) -> SourceConfig:
    """Read the source of the last run."""
    return SourceConfig.model_validate(store.read_json(f"{folder}/config.json")["source"])


def _index(store: Store, table: str, embedded: int) -> dict[str, Any] | None:
    version = read_current(store, table)
    if version is None:
        return None
    card = read_card(store, table, version)
    return {
        "version": version,
        "factory": card.factory,
        "ntotal": card.ntotal,
        "recall_at_10": card.recall_at_10,
        "advice": card.advice,
        "versions": versions(store, table),
        "has_all_rows": card.ntotal == embedded,
    }
