"""What an embed run would do and take: counted from the source and the receipts, and tried out on a few blocks of rows.

In: the embed job's config. Out: an `Estimate`. The trial goes through the real data flow, with the real actors, but for
its last step, which counts; nothing is written to the store. Rows of rewritten shards count as if all had changed.
"""

import logging
import time
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import ray

from pipeline import compute, schema
from pipeline.compute import Pools
from pipeline.config import PlanConfig
from pipeline.embedding.changes import first_rows
from pipeline.embedding.dataflow import dataflow, pools_for, read_spec, steps_for
from pipeline.embedding.plan import Survey, cut, survey
from pipeline.embedding.read import UnitSource
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.record import agreed, new_record, space_of, table_name
from pipeline.embedding.shards import read_shards
from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import TableRecord, Unit, read_record, reasons_of, table_folder

logger = logging.getLogger(__name__)

TRIAL_BLOCKS = 10  # for every encoder: on two cores 40 s, of which the first block is not counted
TRIAL_UNITS = 64  # that the trial's rows come from, spread over the source
ROW_BYTES = 120  # of a row at rest beside vector and kept columns: key, hash and names, compressed
END_S = 3.0  # for actors to end


@dataclass(frozen=True)
class Trial:
    """What a few rows took."""

    rows: int
    rejects: dict[str, int]
    start_s: float  # until rows came steadily: survey, Ray's start, models
    images_per_s: float


@dataclass(frozen=True)
class Estimate:
    """What a run would do, and about what it would take."""

    table: str
    space: str
    d: int
    shards: int
    rows: int
    bytes: int  # of the shards
    unreadable: dict[str, str]  # shards
    units: int
    units_pending: int
    rows_pending: int
    units_stale: int  # of earlier states of shards
    units_removed: int  # of shards that the source does not have any more
    rejects: dict[str, int]  # that the table has
    output_bytes: int  # of the pending rows
    memory_bytes: int | None  # on each node, beside the model and Ray, at most; None: Ray was not asked
    trial: Trial | None
    hours: float | None
    gpu_hours: float | None


def estimate(config: PlanConfig) -> Estimate:
    """Count what is pending, try a few rows, and say what all would take.

    Raises:
        InputError: the source, the model or the table cannot be used as asked.
    """
    began = time.monotonic()
    store = Store(config.store)
    space = space_of(config)
    table = table_name(config, space)
    folder = table_folder(table)
    found = survey(config.source, read_shards(store, folder, config.source))
    record, stored = new_record(config, space, found), read_record(store, table)
    record = record if stored is None else agreed(table, stored, record)
    units = cut(found.shards, config.unit_rows)
    ledger = Ledger(store, folder, (shard.url for shard in found.shards), units, Lease(store, folder))
    pending = ledger.pending
    rows_pending = sum(unit.rows for unit in pending)
    reasons = reasons_of(ledger.receipts[unit.id] for unit in units if unit.id in ledger.receipts)
    trial, pools, gpus = None, None, 0.0
    if pending and config.trial:
        compute.start_ray()
        pools, gpus = pools_for(config, record, found), ray.cluster_resources().get("GPU", 0.0)
        began_s = time.monotonic() - began
        trial = _try(config, store, table, record, found, pools, pending)
        trial = replace(trial, start_s=round(trial.start_s + began_s, 2))
    rows_now = sum(unit.rows for unit in first_rows(pending, config.max_rows))
    hours = (trial.start_s + rows_now / trial.images_per_s + END_S) / 3600 if trial else None
    planned = {unit.shard for unit in units}
    return Estimate(
        table=table,
        space=record.space,
        d=record.d,
        shards=len(found.shards),
        rows=found.rows,
        bytes=sum(shard.bytes for shard in found.shards),
        unreadable=found.unreadable,
        units=len(units),
        units_pending=len(pending),
        rows_pending=rows_pending,
        units_stale=sum(r.unit not in ledger.units and r.shard in planned for r in ledger.receipts.values()),
        units_removed=len(ledger.removed(found.unreadable)),
        rejects=dict(sorted(reasons.items())),
        output_bytes=rows_pending * (4 * record.d + found.kept_bytes + ROW_BYTES),
        memory_bytes=None if pools is None else _memory_bytes(record, pools),
        trial=trial,
        hours=None if hours is None else round(hours, 4),
        gpu_hours=None if hours is None else round(hours * gpus, 4),
    )


class Tally:
    """In place of the write step: counts rows and rejects."""

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Give one row: how many rows, and their reasons."""
        reasons = [reason for reason in batch[schema.REASON].to_pylist() if reason is not None]
        return pa.table({"rows": [batch.num_rows], "reasons": pa.array([reasons], pa.list_(pa.string()))})


def _try(
    config: PlanConfig, store: Store, table: str, record: TableRecord, found: Survey, pools: Pools, pending: list[Unit]
) -> Trial:
    """Send rows from all over the source through the data flow until enough have come out at its end.

    More are read than are counted: at the end of what there is, the encoder has the processors for itself. And half of
    what a run may have in flight: with all of it, most of a trial's rows are decoded before any is counted; with a
    quarter, steps wait for each other (measured: 1.9 times the time).
    """
    wanted = config.rows or TRIAL_BLOCKS * pools.encoders * pools.block_rows
    numbers = np.unique(np.linspace(0, len(pending) - 1, min(TRIAL_UNITS, len(pending))).astype(int))
    chosen = [pending[number] for number in numbers]
    few = replace(pools, write_rows=pools.block_rows, in_flight_bytes=max(1, pools.in_flight_bytes // 2))
    rows_each = -(-2 * wanted // len(chosen))
    if rows_each > pools.block_rows:
        rows_each = -(-rows_each // pools.block_rows) * pools.block_rows  # whole blocks take equal times
    source = UnitSource(chosen, read_spec(config, record, found), {}, rows_each=rows_each)
    steps = steps_for(config, store, table, record, found, pools.encoder_threads)
    began = time.monotonic()
    arrivals: list[tuple[float, int]] = []
    rejects: Counter[str] = Counter()
    rows = 0
    for part in dataflow(source, steps, few, {}, write=Tally().__call__).iter_rows():
        arrivals.append((time.monotonic() - began, part["rows"]))
        rejects.update(part["reasons"])
        rows += part["rows"]
        if rows >= wanted:
            break
    first, last = arrivals[0], arrivals[-1]
    counted = rows - first[1]
    rate = counted / (last[0] - first[0]) if counted and last[0] > first[0] else rows / last[0]
    return Trial(rows, dict(sorted(rejects.items())), round(max(0.0, first[0] - first[1] / rate), 2), round(rate, 2))


def _memory_bytes(record: TableRecord, pools: Pools) -> int:
    """Bound what blocks and decoders take, if every decoder had a picture of the largest size allowed."""
    pictures_bytes = pools.preprocessors * record.preprocess.limits.picture_bytes
    return (pools.in_flight_bytes + pictures_bytes) // len(compute.nodes())
