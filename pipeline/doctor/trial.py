"""What a run does first, tried out from where it would be started: model, store, source, table, and the plan of actors.

In: a config, and a store. Out: a `Trial`. An error that would end a run here is a fact like any other. Writes one small
file, and removes it.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pipeline.config import DoctorConfig
from pipeline.doctor.facts import Trial
from pipeline.doctor.machine import versions
from pipeline.embedding.dataflow import pools_for
from pipeline.embedding.estimate import ROW_BYTES
from pipeline.embedding.plan import Survey, cut, survey
from pipeline.embedding.record import Space, agreed, new_record, space_of, table_name
from pipeline.embedding.shards import read_shards
from pipeline.errors import RunError
from pipeline.filesystem import STORE_ERRORS
from pipeline.lease import holder
from pipeline.store import PROBE, Store
from pipeline.table import TableRecord, read_receipts, read_record, table_folder


def try_out(config: DoctorConfig, store: Store) -> Trial:
    """Do what a run would do before its first row."""
    failures: dict[str, str] = {}
    space = found = record = pools = offset_s = writer = None
    output_bytes = 0
    with noted(failures, "model"):
        space = space_of(config)
    table = table_name(config, space) if space else config.table
    with noted(failures, "store"):
        store.check_writable(single_writer=True)
        offset_s = _clock_offset_s(store)
        writer = holder(store, table_folder(table)) if table else None
    has_store = "store" not in failures
    with noted(failures, "source"):
        known = read_shards(store, table_folder(table), config.source) if table and has_store else {}
        found = survey(config.source, known)
    if space and found and has_store:
        with noted(failures, "table"):
            record = _record(config, store, space, found)
            output_bytes = _pending_rows(config, store, space, found) * (4 * space.d + found.kept_bytes + ROW_BYTES)
    if record and found:
        with noted(failures, "plan"):
            pools = pools_for(config, record, found)
    return Trial(
        versions=versions(),
        model=space.checkpoint.name if space else config.model,
        space=space.name if space else None,
        shard=found.shards[0].url if found else None,
        unreadable=found.unreadable if found else {},
        pools=pools,
        output_bytes=output_bytes,
        has_conditions=store.has_conditions,
        store_clock_offset_s=offset_s,
        writer=writer,
        failures=failures,
    )


@contextmanager
def noted(failures: dict[str, str], question: str) -> Iterator[None]:
    """Take down what would end a run."""
    try:
        yield
    except (RunError, *STORE_ERRORS) as error:
        failures[question] = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"


def _clock_offset_s(store: Store) -> float | None:
    """Compare the store's clock with ours by the time that it gives a new file; most stores give whole seconds."""
    probe = f"{PROBE}{uuid.uuid4().hex}"
    before_s = time.time()
    store.replace(probe, b"clock")
    after_s = time.time()
    try:
        made: datetime = store.filesystem.modified(store.path(probe))
    except NotImplementedError:
        return None
    finally:
        store.remove(probe)
    made = made if made.tzinfo else made.replace(tzinfo=UTC)
    return made.timestamp() - (before_s + after_s) / 2


def _record(config: DoctorConfig, store: Store, space: Space, found: Survey) -> TableRecord:
    table = table_name(config, space)
    wanted, stored = new_record(config, space, found), read_record(store, table)
    return wanted if stored is None else agreed(table, stored, wanted)


def _pending_rows(config: DoctorConfig, store: Store, space: Space, found: Survey) -> int:
    receipts = read_receipts(store, table_folder(table_name(config, space)))
    return sum(unit.rows for unit in cut(found.shards, config.unit_rows) if unit.id not in receipts)
