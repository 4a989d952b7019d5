"""The embed job: a source's pending units through read, fetch, preprocess, encode and write, receipt by receipt.

In: an `EmbedConfig`. Out: a table's files, its receipts, and a `Report` whose counts close. The data flow is
`dataflow`; everything else here says what is pending before it and what holds after it.
"""

import json
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources, TaskPoolStrategy

import pipeline
from pipeline import compute, model, schema
from pipeline.compute import Pools, Request
from pipeline.config import EmbedConfig, PreprocessConfig
from pipeline.embedding.decode import check_formats
from pipeline.embedding.fetch import Fetch, FetchSpec, fetch_spec
from pipeline.embedding.keys import duplicate_rows
from pipeline.embedding.plan import Survey, cut, survey
from pipeline.embedding.preprocess import Preprocess
from pipeline.embedding.read import ReadSpec, UnitSource
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.sandbox import BYTES_PER_PIXEL
from pipeline.embedding.write import Write, WriteSpec
from pipeline.errors import IncompleteError, InputError
from pipeline.lease import Lease
from pipeline.model import EncodeSpec, Limits, PreprocessSpec
from pipeline.schema import Reason
from pipeline.store import Store
from pipeline.table import TableRecord, read_checked, read_record, table_folder, write_record

logger = logging.getLogger(__name__)

PARTITION_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_date,
)
TEXT_BYTES = 1024  # of one row in flight: its key, its unit, its shard's URL
VERSIONED = ("ray", "torch", "open_clip_torch", "pillow", "pyarrow", "numpy")


@dataclass(frozen=True)
class Steps:
    """What each step of the data flow has to know."""

    fetch: FetchSpec
    preprocess: PreprocessSpec
    encode: EncodeSpec
    write: WriteSpec


@dataclass(frozen=True)
class Report:
    """What a run did and what the table holds after it."""

    table: str
    space: str
    d: int
    units: int
    units_skipped: int
    rows_in: int
    embedded: int
    rejected: int
    reasons: dict[str, int]
    encoders: tuple[str, ...]  # what all vectors of these units were computed with
    rows_now: int  # of this run
    seconds: float
    steady_images_per_s: float  # after the first rows were written; 0 if there were no others


class LazyEncode:
    """Encode, imported where it runs: torch takes seconds to import, and whoever plans has no use for it."""

    def __init__(self, spec: EncodeSpec) -> None:
        from pipeline.embedding.encode import Encode

        self.step = Encode(spec)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Do what Encode does."""
        return self.step(batch)


def embed(config: EmbedConfig) -> Report:
    """Embed what is pending of a source, commit it unit by unit, and leave nothing behind that no receipt names.

    Raises:
        InputError: the source, the model, the store or the table cannot be used as asked; nothing was encoded.
        LeaseHeldError: another run writes the table.
        IncompleteError: units are missing, or more rows were rejected than the config allows.
    """
    started = time.monotonic()
    store = Store(config.store)
    found = survey(config.source)
    wanted = _record(config, found)
    table = config.table or f"{config.source.name}__{wanted.space}"
    store.check_writable()
    units = cut(found.shards, config.unit_rows)
    with Lease(store, table_folder(table)) as lease:
        stored = read_record(store, table)
        record = wanted if stored is None else _agreed(table, stored, wanted)
        ledger = Ledger(store, table_folder(table), (shard.url for shard in found.shards), units, lease)
        pending = ledger.pending
        logger.info(
            "table=%s space=%s shards=%d rows=%d units=%d units_skipped=%d units_pending=%d",
            table, record.space, len(found.shards), found.rows, len(units), ledger.skipped, len(pending),
        )  # fmt: skip
        if pending:
            left_out = _left_out(config, store, table, found, ledger)
            compute.start_ray()
            pools = _pools(config, record, found)
            store.replace(f"sources/{config.source.name}.json", config.source.model_dump_json(indent=1).encode())
            store.replace(f"{table_folder(table)}/config.json", config.model_dump_json(indent=1).encode())
            if stored is None:
                write_record(store, table, record, _versions())
            source = UnitSource(pending, _read_spec(config, record), left_out)
            for part in dataflow(source, _steps(config, store, table, record, found, pools), pools).iter_rows():
                ledger.add(part)
        _finish(table, ledger)
    report = _report(ledger, table, record, sum(unit.rows for unit in pending), time.monotonic() - started)
    _check_limits(report, found.rows, config.max_reject_fraction)
    return report


def dataflow(
    source: UnitSource,
    steps: Steps,
    pools: Pools,
    preprocess: type = Preprocess,
    encode: type = LazyEncode,
) -> Dataset:
    """Units in; out, for every run of rows that is written, one row of schema.PART_SCHEMA.

    Args:
        preprocess, encode: the steps; jobs.benchmark has others, which only take their time.
    """
    context = DataContext.get_current()
    context.target_max_block_size = pools.block_rows * steps.preprocess.pixel_bytes
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=pools.in_flight_bytes)
    task = {"num_cpus": compute.TASK_CPUS}
    readers, writers = TaskPoolStrategy(size=pools.readers), TaskPoolStrategy(size=pools.writers)
    rows = ray.data.read_datasource(source, override_num_blocks=len(source.units), compute=readers, **task)
    if source.spec.image_kind != "bytes":
        rows = rows.map_batches(
            Fetch,
            fn_constructor_args=(steps.fetch,),
            compute=ActorPoolStrategy(size=pools.fetchers),
            batch_size=compute.CPU_BLOCK_ROWS,
            batch_format="pyarrow",
            **task,
        )
    return (
        rows.map_batches(
            preprocess,
            fn_constructor_args=(steps.preprocess, pools.block_rows),
            compute=ActorPoolStrategy(size=pools.preprocessors),
            batch_size=None,  # blocks as they were read: of large images they have few rows
            batch_format="pyarrow",
            num_cpus=pools.preprocessor_cpus,
        )
        .map_batches(
            encode,
            fn_constructor_args=(steps.encode,),
            compute=ActorPoolStrategy(size=pools.encoders),
            batch_size=pools.block_rows,
            batch_format="pyarrow",
            num_cpus=0,
            num_gpus=pools.encoder_gpus,
        )
        .map_batches(
            Write(steps.write).__call__, compute=writers, batch_size=pools.write_rows, batch_format="pyarrow", **task
        )
    )


def _steps(config: EmbedConfig, store: Store, table: str, record: TableRecord, found: Survey, pools: Pools) -> Steps:
    return Steps(
        fetch=fetch_spec(config.fetch, record.preprocess.limits.max_image_bytes),
        preprocess=record.preprocess,
        encode=EncodeSpec(
            model=record.model,
            space=record.space,
            preprocess=record.preprocess,
            precision=config.encode.precision,
            dimensions=config.encode.dimensions,
            batch_size=config.encode.batch_size,
            threads=pools.encoder_threads,
            allow_pickle_weights=config.allow_pickle_weights,
        ),
        write=WriteSpec(
            store=store.url,
            folder=table_folder(table),
            source=config.source.name,
            model_id=record.model_id,
            d=record.d,
            kept=found.kept,
            partition_by=config.partition_by,
        ),
    )


def _pools(config: EmbedConfig, record: TableRecord, found: Survey) -> Pools:
    limits = record.preprocess.limits
    pools = compute.pools(
        Request(
            row_bytes=record.preprocess.pixel_bytes + found.kept_bytes + TEXT_BYTES,
            written_bytes=4 * record.d + found.kept_bytes + TEXT_BYTES,
            unit_rows=config.unit_rows,
            picture_bytes=BYTES_PER_PIXEL * limits.max_image_pixels + 2 * limits.max_image_bytes,
            image_bytes=found.image_bytes,
            fetches=record.image_kind != "bytes",
            threads=config.encode.threads,
            memory_budget=config.memory_budget,
        )
    )
    logger.info("pools=%s", json.dumps(asdict(pools)))
    return pools


def _read_spec(config: EmbedConfig, record: TableRecord) -> ReadSpec:
    source, limits = config.source, record.preprocess.limits
    return ReadSpec(
        record.image_column, record.image_kind, source.key_column, source.keep_columns, limits.max_image_bytes
    )


def _record(config: EmbedConfig, found: Survey) -> TableRecord:
    """Say what all rows of the table will have in common."""
    checkpoint = model.resolve(
        config.model, allow_pickle_weights=config.allow_pickle_weights, expected_sha256=config.expected_sha256
    )
    preprocess = checkpoint.preprocess_spec(config.preprocess.fit, config.preprocess.decode, _limits(config.preprocess))
    dimensions = config.encode.dimensions
    if dimensions is not None and dimensions > checkpoint.embed_dim:
        raise InputError(f"encode.dimensions: wanted at most {checkpoint.embed_dim}, got {dimensions}")
    for name in config.partition_by:
        kind = found.kept.field(name).type
        if not any(check(kind) for check in PARTITION_TYPES):
            raise InputError(f"partition_by: column {name!r} is {kind}; wanted text, whole numbers, booleans or dates")
    return TableRecord(
        source=config.source.name,
        image_column=config.source.image_column,
        image_kind=found.image_kind,
        key_column=config.source.key_column,
        kept={field.name: str(field.type) for field in found.kept},
        partition_by=config.partition_by,
        unit_rows=config.unit_rows,
        space=checkpoint.space(preprocess, dimensions),
        model=checkpoint.name,
        model_id=checkpoint.model_id,
        model_sha256=checkpoint.sha256,
        preprocess=preprocess,
        precision=config.encode.precision,
        d=dimensions or checkpoint.embed_dim,
    )


def _limits(config: PreprocessConfig) -> Limits:
    try:
        check_formats(config.formats)
    except ImportError as error:
        raise InputError(str(error)) from error
    return Limits(config.formats, config.max_image_bytes, config.max_image_pixels, config.max_decode_s)


def _versions() -> dict[str, str]:
    return {"rayclip": pipeline.__version__, **{name: version(name) for name in VERSIONED}}


def _left_out(
    config: EmbedConfig, store: Store, table: str, found: Survey, ledger: Ledger
) -> dict[str, NDArray[np.int64]]:
    """Find the rows whose key an earlier row has, where what earlier runs committed is the earliest."""
    committed = [unit for unit in ledger.units.values() if unit.id in ledger.receipts]
    before: dict[str, list[pa.ChunkedArray]] = {}
    for receipt in (ledger.receipts[unit.id] for unit in committed):
        for file in receipt.rejects if Reason.DUPLICATE_KEY in receipt.reasons else ():
            rejects = read_checked(store, table_folder(table), file)
            rows = rejects.filter(pc.equal(rejects[schema.REJECT_REASON], Reason.DUPLICATE_KEY))
            before.setdefault(receipt.shard, []).append(rows[schema.REJECT_ROW])
    rejected = {shard: np.concatenate(rows) for shard, rows in before.items()}
    return duplicate_rows(config.source, found.shards, committed, rejected)


def _agreed(table: str, stored: TableRecord, wanted: TableRecord) -> TableRecord:
    """Take the names that the table's rows have already, if all that makes rows comparable is as it was.

    Raises:
        InputError: it is not, naming the first difference.
    """
    if stored.space != wanted.space:
        raise InputError(
            f"table {table}: has space {stored.space} ({_brief(stored)}), wanted {wanted.space} ({_brief(wanted)}); "
            "choose another --table"
        )
    for name in (
        "source",
        "image_column",
        "image_kind",
        "key_column",
        "kept",
        "partition_by",
        "unit_rows",
        "d",
    ):
        old, new = getattr(stored, name), getattr(wanted, name)
        if old != new:
            raise InputError(f"table {table}: has {name} {old!r}, wanted {new!r}; choose another --table")
    return replace(wanted, model_id=stored.model_id)


def _brief(record: TableRecord) -> str:
    spec = record.preprocess
    size = f"{spec.width_px} x {spec.height_px} px"
    return f"{record.model_id}, {spec.resize_mode} to {size}, decode {spec.decode}, d {record.d}"


def _finish(table: str, ledger: Ledger) -> None:
    """Check that nothing is missing, withdraw what newer units replace, and remove what no receipt names."""
    missing = [unit.id for unit in ledger.pending]
    if missing:
        named = ", ".join(missing[:5])
        raise IncompleteError(
            f"table {table}: {len(missing)} units have no receipt: {named}; run the same command again"
        )
    replaced = ledger.replaced()
    for receipt in replaced:
        ledger.retire(receipt)
    removed = ledger.remove_unnamed_files()
    if replaced or removed:
        logger.info("table=%s units_replaced=%d unnamed_files_removed=%d", table, len(replaced), removed)


def _report(ledger: Ledger, table: str, record: TableRecord, rows_now: int, seconds: float) -> Report:
    receipts = [ledger.receipts[unit] for unit in ledger.units]
    reasons: Counter[str] = Counter()
    for receipt in receipts:
        reasons.update(receipt.reasons)
    report = Report(
        table=table,
        space=record.space,
        d=record.d,
        units=len(receipts),
        units_skipped=ledger.skipped,
        rows_in=sum(receipt.rows_in for receipt in receipts),
        embedded=sum(receipt.embedded for receipt in receipts),
        rejected=sum(receipt.rejected for receipt in receipts),
        reasons=dict(sorted(reasons.items())),
        encoders=tuple(sorted({encoder for receipt in receipts for encoder in receipt.encoders})),
        rows_now=rows_now,
        seconds=round(seconds, 2),
        steady_images_per_s=ledger.images_per_s,
    )
    logger.info(
        "table=%s rows_in=%d embedded=%d rejected=%d reasons=%s encoders=%s units_skipped=%d rows_now=%d seconds=%.1f",
        table, report.rows_in, report.embedded, report.rejected, report.reasons, report.encoders,
        report.units_skipped, rows_now, seconds,
    )  # fmt: skip
    return report


def _check_limits(report: Report, rows: int, max_reject_fraction: float) -> None:
    """Hold the run to what exit 0 promises: every row of the source accounted for, and few enough rejects."""
    if report.rows_in != rows or report.embedded + report.rejected != rows:
        raise RuntimeError(f"table {report.table}: {rows} rows planned, but counts do not close: {report}")
    bad = report.rejected - report.reasons.get(Reason.DUPLICATE_KEY, 0)  # those were asked to be left out
    if bad > max_reject_fraction * rows:
        raise IncompleteError(
            f"table {report.table}: {bad} of {rows} rows rejected {report.reasons}, more than "
            f"max_reject_fraction {max_reject_fraction}; what was embedded stays"
        )
