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

from jobs.benchmark.config import ScalingConfig
from pipeline.config import SourceConfig
from pipeline.embedding.plan import cut, survey
from pipeline.embedding.receipts import Ledger
from pipeline.lease import Lease
from pipeline.store import Store
from pipeline.table import File, Receipt, Unit, receipt_path, table_folder

SHARD_ROWS, UNIT_ROWS = 10_000, 8192
TABLE = "waiting"


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


def measure_planning(config: ScalingConfig) -> Planning:
    """Plan and resume in a fresh process, so that its memory is that of planning alone."""
    with tempfile.TemporaryDirectory(dir=config.out, prefix="planning-") as folder:
        _make_up_shards(Path(folder) / "shards", config.shards)
        _make_up_receipts(Path(folder))
        done = subprocess.run(
            [sys.executable, "-m", "jobs.benchmark.planning", folder], stdout=subprocess.PIPE, text=True, check=True
        )
        measured = Planning(**json.loads(done.stdout.splitlines()[-1]))
        return replace(measured, commits_per_s=_measure_commits(Path(folder), config.commits))


def _make_up_shards(folder: Path, count: int) -> None:
    folder.mkdir()
    made = pa.BufferOutputStream()
    rows = pa.table({"key": pa.nulls(SHARD_ROWS, pa.string()), "image": pa.array([b""] * SHARD_ROWS, pa.binary())})
    pq.write_table(rows, made, row_group_size=1000)
    content = made.getvalue().to_pybytes()
    for number in range(count):
        (folder / f"shard-{number:06d}.parquet").write_bytes(content)


def _make_up_receipts(folder: Path) -> None:
    units = cut(survey(_source(folder)).shards, UNIT_ROWS)
    receipts = folder / "store" / table_folder(TABLE) / "receipts"
    receipts.mkdir(parents=True)
    for unit in units[: len(units) * 99 // 100]:
        (receipts / f"{unit.id}.json").write_text(json.dumps(asdict(_receipt(unit)), indent=1))


def _receipt(unit: Unit) -> Receipt:
    file = File(f"data/unit={unit.id}/{'0' * 32}.parquet", unit.rows, unit.rows * 2048, "0" * 64)
    return Receipt(
        unit=unit.id, shard=unit.shard, first_row=unit.first_row, first_group=unit.first_group, groups=unit.groups,
        rows_in=unit.rows, embedded=unit.rows, rejected=0, reasons={}, encoders=("waiting",), data=(file,), rejects=(),
        seconds=1.0,
    )  # fmt: skip


def _source(folder: Path) -> SourceConfig:
    return SourceConfig(name="made-up", path=str(folder / "shards"))


def _plan(folder: Path) -> Planning:
    """Be the fresh process."""
    started = time.perf_counter()
    found = survey(_source(folder))
    surveyed = time.perf_counter()
    units = cut(found.shards, UNIT_ROWS)
    cut_up = time.perf_counter()
    store = Store(str(folder / "store"))
    with Lease(store, table_folder(TABLE)) as lease:
        ledger = Ledger(store, table_folder(TABLE), (shard.url for shard in found.shards), units, lease)
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
    print(json.dumps(asdict(_plan(Path(sys.argv[1])))))
