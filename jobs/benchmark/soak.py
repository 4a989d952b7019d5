"""Runs that are killed at seeded random moments, and resumed: every row in exactly once, every time.

In: a number of runs. Out: `soak.json`, with what was killed when, how often the command had to be given, and whether
ids in equal ids out. One warm cluster of two nodes serves all runs; a driver, a worker or a node's raylet is killed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster
from rich.console import Console
from rich.table import Table

from jobs.benchmark.config import SoakConfig
from jobs.demo.__main__ import figures
from pipeline.config import VerifyConfig
from pipeline.store import Store
from pipeline.table import read_checked, read_receipts, table_folder
from pipeline.upkeep.verify import verify

TABLE = "soak"
SHARDS, GROUP_ROWS = 3, 25
VICTIMS = ("driver", "worker", "raylet")
WORKERS = ("MapBatches(", "ReadUnitSource")  # as Ray titles the processes that do our work
TRIES, TRY_S = 5, 240.0
TICK_S = 0.02


@dataclass(frozen=True)
class Death:
    """One run: what was killed in it, and what became of its rows."""

    number: int
    victim: str
    after_s: float  # that it was killed, from the start
    was_running: bool  # when it was killed
    exits: list[int]  # of the first command and of those that resumed it
    units_before: int  # that were committed when the first command had ended
    is_exact: bool  # ids out equal ids in, each once, and no other file is left
    seconds: float


@dataclass(frozen=True)
class World:
    """What all runs share."""

    cluster: Cluster
    nodes: list[Any]  # of Ray's own class: those beside the head
    keys: list[str]  # of the corpus, sorted
    out: Path


@dataclass(frozen=True)
class Moment:
    """When to kill: after some seconds, or after some commits."""

    after_s: float
    after_units: int | None = None

    def has_come(self, seconds: float, units: int) -> bool:
        """Tell whether it has."""
        return seconds >= self.after_s if self.after_units is None else units >= self.after_units


def soak(config: SoakConfig) -> list[Death]:
    """Kill and resume, and compare ids; write soak.json.

    Raises:
        RuntimeError: a run lost, doubled or invented a row, or did not end.
    """
    out = Path(config.out).absolute()
    shutil.rmtree(out / "soak", ignore_errors=True)
    keys = _write_corpus(out / "soak" / "corpus", config)
    rng, units = random.Random(config.seed), config.rows // GROUP_ROWS
    deaths: list[Death] = []
    with _cluster() as (cluster, nodes):
        world = World(cluster, nodes, keys, out)
        usual_s = min(_one(world, number, "nobody", Moment(0.0)).seconds for number in (-1, 0))  # the first warms up
        for number in range(1, config.runs + 1):
            # By turns after a while, and after some commits: those come close together at the end of a small run.
            moment = Moment(rng.uniform(0.1, 0.9) * usual_s, rng.randint(1, units - 1) if number % 2 else None)
            deaths.append(_one(world, number, VICTIMS[number % len(VICTIMS)], moment))
            (out / "soak.json").write_text(json.dumps([asdict(death) for death in deaths], indent=1) + "\n")
    _print(deaths)
    if wrong := [death.number for death in deaths if not death.is_exact]:
        raise RuntimeError(f"runs {wrong}: rows lost, doubled, invented or left over; see {out}/soak.json")
    return deaths


def _one(world: World, number: int, victim: str, moment: Moment) -> Death:
    """Start a run, kill the victim, give the same command until it ends with 0, and compare ids."""
    began = time.monotonic()
    place = world.out / "soak" / f"store-{number}"
    job = _start(world, place)
    while job.poll() is None and not moment.has_come(time.monotonic() - began, len(_receipts(place))):
        time.sleep(TICK_S)
    after_s, was_running = time.monotonic() - began, job.poll() is None
    _kill(victim, job, world)
    exits = [_wait(job)]
    units = len(_receipts(place))
    while exits[-1] != 0 and len(exits) < TRIES:
        exits.append(_wait(_start(world, place)))
    is_exact = (
        exits[-1] == 0 and _ids(place) == world.keys and not verify(VerifyConfig(store=str(place), table=TABLE)).faults
    )
    death = Death(
        number, victim, round(after_s, 2), was_running, exits, units, is_exact, round(time.monotonic() - began, 1)
    )
    if is_exact:
        shutil.rmtree(place)
    print(death, flush=True)
    return death


def _start(world: World, place: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "jobs.embed",
        "--store",
        str(place),
        "--table",
        TABLE,
        "--model",
        "jobs/demo/model",
    ]
    command += [
        "--unit_rows",
        str(GROUP_ROWS),
        "--source.name",
        "soak",
        "--source.path",
        str(world.out / "soak" / "corpus"),
    ]
    # One encoder on the node: importing torch is most of what a run takes.
    command += ["--source.key_column", "key", "--encode.batch_size", "4", "--encode.threads", "4"]
    with (world.out / "soak" / f"{place.name}.log").open("ab") as log:
        return subprocess.Popen(
            command, env={**os.environ, "RAY_ADDRESS": world.cluster.address}, stdout=log, stderr=log
        )


def _wait(job: subprocess.Popen[bytes]) -> int:
    """Wait for a command to end; one that does not is a failure of its own."""
    try:
        return job.wait(TRY_S)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
        raise RuntimeError(f"process {job.pid} did not end within {TRY_S:.0f} s") from None


def _kill(victim: str, job: subprocess.Popen[bytes], world: World) -> None:
    if victim == "driver":
        job.kill()
    elif victim == "worker" and (workers := sorted(_workers(), key=lambda process: process.pid)):
        with_work = [process for process in workers if process.is_running()]
        with_work[job.pid % len(with_work)].send_signal(signal.SIGKILL)
    elif victim == "raylet":
        world.cluster.remove_node(world.nodes.pop(), allow_graceful=False)
        world.nodes.append(_add_node(world.cluster))


def _workers() -> list[psutil.Process]:
    """List the processes of this machine's clusters that do our work and were started by this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(title in " ".join(process.cmdline()) for title in WORKERS):
                found.append(process)
        except psutil.NoSuchProcess:  # gone while we looked
            continue
    return found


@contextmanager
def _cluster() -> Iterator[tuple[Cluster, list[Any]]]:
    """Start a head that computes nothing, for drivers, and a node beside it."""
    head = {"num_cpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [_add_node(cluster)]
        cluster.wait_for_nodes()
        yield cluster, nodes
    finally:
        cluster.shutdown()


def _add_node(cluster: Cluster) -> Any:  # Ray's own class
    return cluster.add_node(num_cpus=4, object_store_memory=100 << 20)


def _write_corpus(folder: Path, config: SoakConfig) -> list[str]:
    """Write pictures of the demo, some of them broken; their keys, sorted."""
    folder.mkdir(parents=True)
    rows = list(figures(config.rows, np.random.default_rng(config.seed)))
    for number in range(SHARDS):
        mine = rows[number * len(rows) // SHARDS : (number + 1) * len(rows) // SHARDS]
        pq.write_table(pa.Table.from_pylist(mine), folder / f"{number}.parquet", row_group_size=GROUP_ROWS)
    return sorted(row["key"] for row in rows)


def _receipts(place: Path) -> list[Path]:
    return list((place / table_folder(TABLE) / "receipts").glob("*.json"))


def _ids(place: Path) -> list[str]:
    """Read the ids of all rows and rejects that receipts name, sorted."""
    store, folder = Store(str(place)), table_folder(TABLE)
    receipts = read_receipts(store, folder).values()
    files = [file for receipt in receipts for file in (*receipt.data, *receipt.rejects)]
    return sorted(key for file in files for key in read_checked(store, folder, file)["_row_id"].to_pylist())


def _print(deaths: list[Death]) -> None:
    table = Table("killed", "runs", "while it ran", "commands", "units before, mean", "exact", title="soak")
    for victim in VICTIMS:
        mine = [death for death in deaths if death.victim == victim]
        commands = dict(sorted(Counter(len(death.exits) for death in mine).items()))
        units = np.mean([death.units_before for death in mine]) if mine else 0.0
        table.add_row(
            victim, str(len(mine)), str(sum(death.was_running for death in mine)), str(commands), f"{units:.1f}",
            str(sum(death.is_exact for death in mine)),
        )  # fmt: skip
    Console(width=120).print(table)
