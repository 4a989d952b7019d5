"""Designs for past 10^9 rows, tried on made-up tables and lists: a part of `jobs.benchmark scaling`.

None of them is built. Receipts in one Parquet file, for stores where reading two million small objects takes longer
than planning may; and a merge shared out by ranges of lists, for indexes that one machine cannot write in a night.
"""

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.indexing.lists import read_lists, write_lists
from pipeline.store import Store
from pipeline.table import File, Receipt, read_receipts, table_folder

TABLE = "waiting"
LISTS, CODE_BYTES, PARTIALS, RANGES = 4096, 512, 4, 2
HEADER = 4 + 8 + 8 + 4 + 8  # bytes before the lengths of lists, in FAISS's format of them


@dataclass(frozen=True)
class Compacted:
    """Receipts as one Parquet file, beside as many objects."""

    receipts: int
    loose_s: float  # to read all
    loose_bytes: int
    compacting_s: float
    compacted_s: float  # to read all, into the same receipts
    compacted_bytes: int


@dataclass(frozen=True)
class Ranged:
    """Partials merged as a whole, and by ranges of lists in a process each."""

    bytes: int
    ranges: int
    whole_s: float
    range_s: float  # until the last of them is written; behind each other they are the whole, byte for byte


def compact(folder: Path) -> Compacted:
    """Put a table's receipts into one file, and read them back, in a fresh process."""
    command = [sys.executable, "-m", "jobs.benchmark.beyond", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Compacted(**json.loads(done.stdout.splitlines()[-1]))


def _compact(folder: Path) -> Compacted:
    """Be the fresh process."""
    store, file = Store(str(folder / "store")), folder / "receipts.parquet"
    started = time.perf_counter()
    loose = read_receipts(store, table_folder(TABLE))
    read = time.perf_counter()
    rows = [{**asdict(receipt), "reasons": sorted(receipt.reasons.items())} for receipt in loose.values()]
    pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")
    written = time.perf_counter()
    again = {receipt.unit: receipt for receipt in map(_receipt, pq.read_table(file).to_pylist())}
    ended = time.perf_counter()
    if again != loose:
        raise RuntimeError("receipts came back from Parquet as others than they were")
    objects = (folder / "store" / table_folder(TABLE) / "receipts").iterdir()
    return Compacted(
        receipts=len(loose),
        loose_s=round(read - started, 2),
        loose_bytes=sum(one.stat().st_size for one in objects),
        compacting_s=round(written - read, 2),
        compacted_s=round(ended - written, 2),
        compacted_bytes=file.stat().st_size,
    )


def _receipt(row: dict[str, object]) -> Receipt:
    made = {field.name: row[field.name] for field in fields(Receipt)}
    for name in ("data", "rejects"):
        made[name] = tuple(File(**file) for file in row[name])  # type: ignore[attr-defined]  # a list of structs
    made["encoders"] = tuple(row["encoders"])  # type: ignore[arg-type]  # a list of text
    made["reasons"] = dict(row["reasons"])  # type: ignore[call-overload]  # a list of pairs
    return Receipt(**made)  # type: ignore[arg-type]  # as read_receipts


def merge_by_ranges(out: str, rows: int) -> Ranged:
    """Merge made-up partials of so many rows, both ways, and compare what was written byte by byte."""
    with tempfile.TemporaryDirectory(dir=out, prefix="ranges-") as name:
        folder = Path(name)
        for number in range(PARTIALS):
            _make_up_lists(folder / f"partial-{number}", rows // PARTIALS, number)
        bounds = [(first, first + LISTS // RANGES) for first in range(0, LISTS, LISTS // RANGES)]
        whole_s = _timed(folder, [(0, LISTS)])
        range_s = _timed(folder, bounds)
        whole = (folder / f"merged-0-{LISTS}").read_bytes()
        parts = [(folder / f"merged-{first}-{end}").read_bytes() for first, end in bounds]
        size = LISTS // RANGES * 8
        lengths = b"".join(part[HEADER : HEADER + size] for part in parts)
        entries = b"".join(part[HEADER + size :] for part in parts)
        if whole[HEADER:] != lengths + entries:
            raise RuntimeError("lists merged by ranges are others than lists merged as a whole")
        return Ranged(len(whole), RANGES, whole_s, range_s)


def _make_up_lists(path: Path, rows: int, seed: int) -> None:
    """Write lists of unequal lengths, as k-means leaves them."""
    random = np.random.default_rng(seed)
    lists = faiss.ArrayInvertedLists(LISTS, CODE_BYTES)
    sizes = random.multinomial(rows, random.dirichlet(np.full(LISTS, 2.0)))
    first = seed * rows
    for number, size in enumerate(sizes):
        codes = random.integers(0, 256, (size, CODE_BYTES), np.uint8)
        ids = np.arange(first, first + size)
        lists.add_entries(number, int(size), faiss.swig_ptr(ids), faiss.swig_ptr(codes))
        first += int(size)
    write_lists([lists], path)


def _timed(folder: Path, bounds: list[tuple[int, int]]) -> float:
    """Merge each of some ranges in a process of its own, all at once."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(bounds)) as pool:
        pool.map(_wait, [1.0] * len(bounds), chunksize=1)  # each has imported then: that is not the question
        began = time.perf_counter()
        pool.starmap(_merge_range, [(folder, first, end) for first, end in bounds], chunksize=1)
        return round(time.perf_counter() - began, 2)


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _merge_range(folder: Path, first: int, end: int) -> None:
    parts = [read_lists(folder / f"partial-{number}") for number in range(PARTIALS)]
    write_lists([faiss.SliceInvertedLists(part, first, end) for part in parts], folder / f"merged-{first}-{end}")


if __name__ == "__main__":
    print(json.dumps(asdict(_compact(Path(sys.argv[1])))))
