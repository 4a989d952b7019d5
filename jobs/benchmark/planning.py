"""What planning, resuming and committing cost, on made-up footers and receipts: a part of `jobs.benchmark scaling`."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.benchmark.beyond import Compacted, compact
from jobs.benchmark.config import ScalingConfig
from jobs.benchmark.watch import measured_command
from pipeline.config import SourceConfig
from pipeline.embedding.plan import cut, survey
from pipeline.embedding.receipts import Ledger
from pipeline.embedding.shards import write_shards
from pipeline.lease import Lease
from pipeline.model import OPENAI_MEAN, OPENAI_STD, PreprocessSpec
from pipeline.store import Store
from pipeline.table import File, Receipt, TableRecord, Unit, receipt_path, table_folder, write_record

SHARD_ROWS, UNIT_ROWS = 10_000, 8192
TABLE = "waiting"
# One table of all shards; and two, of every other shard each, as somebody would have who shares a source out.
TABLES = {TABLE: "*.parquet", "even": "*[02468].parquet", "odd": "*[13579].parquet"}
MODEL = "jobs/demo/model"


@dataclass(frozen=True)
class Planning:
    """What made-up footers and receipts cost."""

    shards: int
    rows: int
    units: int
    survey_s: float
    cut_s: float
    receipts: int  # 99 % of the units
    resume_s: float  # to read them, and to know what is pending
    rss_bytes: int  # with all of it in memory
    commits_per_s: float  # receipts made durable, one after the other
    status_s: float  # of the whole command `jobs.status`
    status_bytes: int  # its memory at its peak
    estimate_s: float  # of the whole command `jobs.plan` without a trial, of a table that has no receipt
    estimate_bytes: int


@dataclass(frozen=True)
class Sharded:
    """The same source as two tables, planned and resumed beside each other."""

    tables: int
    seconds: float  # until the last is planned
    rss_bytes: int  # of the driver that needs most


def measure_planning(config: ScalingConfig) -> tuple[Planning, Sharded, Compacted]:
    """Plan and resume in fresh processes, so that their memory is that of planning alone."""
    with tempfile.TemporaryDirectory(dir=config.out, prefix="planning-") as name:
        folder = Path(name).resolve()
        _make_up_shards(folder / "shards", config.shards)
        _make_up_receipts(folder)
        (whole,) = _plan_beside(folder, [TABLE])
        began = time.perf_counter()
        parts = _plan_beside(folder, ["even", "odd"])
        sharded = Sharded(2, round(time.perf_counter() - began, 2), max(part.rss_bytes for part in parts))
        status = measured_command("jobs.status", "--store", f"{folder}/store", "--table", TABLE, "--json")
        source = ["--source.name", "made-up", "--source.path", f"{folder}/shards", "--source.key_column", "key"]
        estimate = measured_command(
            "jobs.plan",
            "--store",
            f"{folder}/none",
            "--model",
            MODEL,
            "--no-trial",
            "--json",
            "--index.memory_budget",
            "512GiB",
            *source,
        )
        whole = replace(
            whole,
            commits_per_s=_measure_commits(folder, config.commits),
            status_s=status.seconds,
            status_bytes=status.peak_bytes,
            estimate_s=estimate.seconds,
            estimate_bytes=estimate.peak_bytes,
        )
        return whole, sharded, compact(folder)


def _plan_beside(folder: Path, tables: list[str]) -> list[Planning]:
    """Plan tables at the same time, each in a process of its own."""
    command = [sys.executable, "-m", "jobs.benchmark.planning", str(folder)]
    running = [subprocess.Popen([*command, table], stdout=subprocess.PIPE, text=True) for table in tables]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"planning {tables} failed")
    return [Planning(**json.loads(lines.splitlines()[-1])) for lines in said]


def _make_up_shards(folder: Path, count: int) -> None:
    folder.mkdir()
    made = pa.BufferOutputStream()
    rows = pa.table({"key": pa.nulls(SHARD_ROWS, pa.string()), "image": pa.array([b""] * SHARD_ROWS, pa.binary())})
    pq.write_table(rows, made, row_group_size=1000)
    content = made.getvalue().to_pybytes()
    for number in range(count):
        (folder / f"shard-{number:06d}.parquet").write_bytes(content)


def _make_up_receipts(folder: Path) -> None:
    store = Store(str(folder / "store"))
    for table in TABLES:
        found = survey(_source(folder, table))
        units = cut(found.shards, UNIT_ROWS)
        receipts = folder / "store" / table_folder(table) / "receipts"
        receipts.mkdir(parents=True)
        for unit in units[: len(units) * 99 // 100]:
            (receipts / f"{unit.id}.json").write_text(json.dumps(asdict(_receipt(unit)), indent=1))
        write_shards(store, table_folder(table), _source(folder, table), found, {}, f"runs/{table}")
        config = {"source": _source(folder, table).model_dump(mode="json")}
        store.replace_json(f"{table_folder(table)}/config.json", config)
        write_record(store, table, _record(), {})


def _record() -> TableRecord:
    pixels = PreprocessSpec(height_px=8, width_px=8, mean=OPENAI_MEAN, std=OPENAI_STD)
    return TableRecord(
        source="made-up", image_column="image", image_kind="bytes", key_column="key", kept={}, partition_by=(),
        unit_rows=UNIT_ROWS, space="waiting", model="waiting", model_id="waiting", model_sha256={}, preprocess=pixels,
        precision=None, d=512,
    )  # fmt: skip


def _receipt(unit: Unit) -> Receipt:
    file = File(f"data/unit={unit.id}/{'0' * 32}.parquet", unit.rows, unit.rows * 2048, "0" * 64)
    return Receipt(
        unit=unit.id, shard=unit.shard, first_row=unit.first_row, first_group=unit.first_group, groups=unit.groups,
        rows_in=unit.rows, embedded=unit.rows, rejected=0, reasons={}, encoders=("waiting",), data=(file,), rejects=(),
        seconds=1.0,
    )  # fmt: skip


def _source(folder: Path, table: str) -> SourceConfig:
    return SourceConfig(name="made-up", path=f"{folder}/shards/{TABLES[table]}", key_column="key")


def _plan(folder: Path, table: str) -> Planning:
    """Be the fresh process."""
    started = time.perf_counter()
    found = survey(_source(folder, table))
    surveyed = time.perf_counter()
    units = cut(found.shards, UNIT_ROWS)
    cut_up = time.perf_counter()
    store = Store(str(folder / "store"))
    with Lease(store, table_folder(table)) as lease:
        ledger = Ledger(store, table_folder(table), (shard.url for shard in found.shards), units, lease)
        pending = len(ledger.pending)
    resumed = time.perf_counter()
    return Planning(
        shards=len(found.shards),
        rows=found.rows,
        units=len(units),
        survey_s=round(surveyed - started, 2),
        cut_s=round(cut_up - surveyed, 2),
        receipts=len(units) - pending,
        resume_s=round(resumed - cut_up, 2),
        rss_bytes=psutil.Process().memory_info().rss,
        commits_per_s=0.0,
        status_s=0.0,
        status_bytes=0,
        estimate_s=0.0,
        estimate_bytes=0,
    )


def _measure_commits(folder: Path, count: int) -> float:
    store = Store(str(folder / "commits"))
    started = time.perf_counter()
    for number in range(count):
        unit = Unit(f"unit-{number:06d}", "shard", 0, UNIT_ROWS, 0, 8)
        content = json.dumps(asdict(_receipt(unit)), indent=1).encode()
        store.create(receipt_path(table_folder(TABLE), unit.id), content)
    return round(count / (time.perf_counter() - started), 1)


if __name__ == "__main__":
    print(json.dumps(asdict(_plan(Path(sys.argv[1]), sys.argv[2]))))
