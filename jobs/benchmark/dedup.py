"""What is found of made copies, by kind of change, and in what time among how many rows: `… benchmark dedup`.

In: how many scenes, and how many made-up vectors. Out: tables, and out/benchmark/dedup.json. Everything is done by the
jobs themselves, in processes of their own, with their default settings.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from jobs.benchmark.alike import CHANGES, pictures
from jobs.benchmark.config import DedupBenchmarkConfig
from jobs.benchmark.vectors import MadeUp
from jobs.benchmark.watch import Watch
from pipeline.dedup.record import CARD, GROUPS, Duplicates
from pipeline.store import Store

TABLE = "copies"


@dataclass(frozen=True)
class Kind:
    """How copies of one kind were found; of ``all``, every copy."""

    kind: str
    copies: int
    recall: float  # share of the copies that are in one group with their original
    recall_alone: float  # share that is joined to the original by an edge of its own
    precision: float  # of pairs in one group, one of the pair of this kind: share that show one scene


@dataclass(frozen=True)
class Scale:
    """One corpus of made-up vectors."""

    rows: int
    seconds: float  # of the whole job
    index_s: float  # of building the index first
    stages: dict[str, float]
    peak_bytes: int  # of all its processes, what they share counted once
    peak_anonymous_bytes: int  # without what they have mapped of files
    groups: int
    dropped: int
    recall: float | None  # of pairs, as the card has it


def dedup(config: DedupBenchmarkConfig) -> None:
    """Measure both, print tables, and write dedup.json."""
    out = Path(config.out)
    kinds = _labelled(config, out / f"dedup-{config.scenes}-{config.seed}") if config.scenes else []
    scales = [_scale(config, out / f"dedup-{rows}x{config.dimensions}-{config.seed}", rows) for rows in config.rows]
    exponent = None
    if len(scales) > 1:
        small, large = scales[0], scales[-1]
        exponent = round(math.log(large.seconds / small.seconds) / math.log(large.rows / small.rows), 3)
    parts = {"kinds": [asdict(one) for one in kinds], "scales": [asdict(one) for one in scales], "exponent": exponent}
    out.mkdir(parents=True, exist_ok=True)
    (out / "dedup.json").write_text(json.dumps(parts, indent=1) + "\n")
    _print(kinds, scales, exponent)


def by_kind(groups: pa.Table, edges: pa.Table, labels: pa.Table) -> list[Kind]:
    """Count what was found.

    Args:
        groups, edges: as the job wrote them.
        labels: key, scene and kind of every row.
    """
    scene = dict(zip(labels["key"].to_pylist(), labels["scene"].to_pylist(), strict=True))
    kind = dict(zip(labels["key"].to_pylist(), labels["kind"].to_pylist(), strict=True))
    group = dict(zip(groups["_row_id"].to_pylist(), groups["group"].to_pylist(), strict=True))
    members: dict[int, list[str]] = {}
    for key, number in group.items():
        members.setdefault(number, []).append(key)
    joining = edges.filter(edges["joins"])
    joined = set(zip(joining["row_id_a"].to_pylist(), joining["row_id_b"].to_pylist(), strict=True))
    originals = {scene[key]: key for key in scene if kind[key] not in CHANGES}

    def measured(name: str, keys: list[str]) -> Kind:
        pairs = [(key, other) for key in keys for other in members.get(group.get(key, -1), []) if other != key]
        right = sum(scene[key] == scene[other] for key, other in pairs)
        own = [(key, originals[scene[key]]) for key in keys]
        together = sum(key in group and group[key] == group.get(original) for key, original in own)
        alone = sum((key, original) in joined or (original, key) in joined for key, original in own)
        return Kind(
            kind=name,
            copies=len(keys),
            recall=round(together / max(1, len(keys)), 4),
            recall_alone=round(alone / max(1, len(keys)), 4),
            precision=round(right / len(pairs), 4) if pairs else 1.0,
        )

    every = {name: [key for key in scene if kind[key] == name] for name in CHANGES}
    every["all"] = [key for key in scene if kind[key] in CHANGES]
    return [measured(name, keys) for name, keys in every.items()]


def _labelled(config: DedupBenchmarkConfig, folder: Path) -> list[Kind]:
    """Embed scenes and their copies, and find them."""
    shard, store = folder / "pictures.parquet", Store(str(folder / "store"))
    if not shard.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = [one.row for one in pictures(config.scenes, config.seed)]
        pq.write_table(pa.Table.from_pylist(rows), shard, row_group_size=256)
    source = ["--source.name", TABLE, "--source.path", str(shard), "--source.key_column", "key"]
    _job("embed", store, "--model", config.model, *source, "--source.keep_columns", '["scene", "kind"]')
    _job("build_index", store)
    _job("dedup", store)
    card, place = _card(store)
    parts = [pq.read_table(place / name) for name in card.sha256 if name.startswith("edges/")]
    return by_kind(
        pq.read_table(place / GROUPS), pa.concat_tables(parts), pq.read_table(shard, columns=["key", "scene", "kind"])
    )


def _scale(config: DedupBenchmarkConfig, folder: Path, rows: int) -> Scale:
    """Find copies among made-up vectors, by vectors alone: there are no pictures."""
    store = MadeUp(rows, config.dimensions, config.seed, planted=config.planted).write(folder, TABLE)
    index_s, _ = _job("build_index", store, "--text_queries", "none")
    shutil.rmtree(Path(store.url) / "duplicates", ignore_errors=True)
    seconds, watch = _job("dedup", store, "--stages", '["embedding"]', "--keep", "first")
    card, _ = _card(store)
    recall = None if card.recall is None else card.recall["share"]
    return Scale(
        rows=rows,
        seconds=seconds,
        index_s=index_s,
        stages=card.seconds,
        peak_bytes=watch.peak_bytes,
        peak_anonymous_bytes=watch.peak_anonymous_bytes,
        groups=card.groups,
        dropped=card.dropped,
        recall=recall,
    )


def _job(name: str, store: Store, *flags: str) -> tuple[float, Watch]:
    """Run a job in a process of its own, and watch it: seconds, memory."""
    began = time.monotonic()
    job = subprocess.Popen([sys.executable, "-m", f"jobs.{name}", "--store", store.url, *flags])
    with Watch(job.pid) as watch:
        status = job.wait()
    if status != os.EX_OK:
        raise RuntimeError(f"jobs.{name} ended with {status}")
    return round(time.monotonic() - began, 1), watch


def _card(store: Store) -> tuple[Duplicates, Path]:
    """Read the card of the newest run, and say where it lies."""
    newest = max((Path(store.url) / "duplicates").glob(f"*/*/{CARD}"), key=lambda path: path.stat().st_mtime)
    return Duplicates(**store.read_json(str(newest.relative_to(store.url)))), newest.parent


def _print(kinds: list[Kind], scales: list[Scale], exponent: float | None) -> None:
    if kinds:
        table = Table("change", "copies", "recall", "by an edge of its own", "precision", title="copies by their kind")
        for kind in kinds:
            table.add_row(
                kind.kind, str(kind.copies), f"{kind.recall:.4f}", f"{kind.recall_alone:.4f}", f"{kind.precision:.4f}"
            )
        Console().print(table)
    if scales:
        table = Table(
            "rows", "s", "index s", "GB", "groups", "recall", title=f"made-up vectors: time grows as n^{exponent}"
        )
        for one in scales:
            table.add_row(
                f"{one.rows:,}", f"{one.seconds:.0f}", f"{one.index_s:.0f}", f"{one.peak_bytes / 1e9:.2f}",
                f"{one.groups:,}", str(one.recall),
            )  # fmt: skip
        Console().print(table)
