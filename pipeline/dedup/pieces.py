"""Work cut into pieces: arrays in a folder of their own, and a receipt that is written last.

A piece that has its receipt, and whose files are those that were written, is not made again. Pieces are made in Ray
tasks, or here where there is only one; what comes of it does not depend on which, nor on how many there are at a time.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pipeline import compute
from pipeline.dedup.pairs import Pairs
from pipeline.errors import IncompleteError
from pipeline.filesystem import sha256_of
from pipeline.stopping import alive
from pipeline.store import Store

logger = logging.getLogger(__name__)

RECEIPT = "receipt.json"
Arrays = dict[str, NDArray[np.generic]]
Counts = dict[str, int]
Make = Callable[..., tuple[Arrays, Counts]]  # of a store's URL, and what a job says


@dataclass(frozen=True)
class Job:
    """A piece that is wanted: where, and from what it is made."""

    folder: str  # below the store's root
    arguments: tuple[Any, ...]  # whatever the function that makes it takes
    asked: str  # digest of all that it depends on, beside what its folder stands for


def range_jobs(folder: str, bounds: Iterable[tuple[int, int]], arguments: tuple[Any, ...], asked: str) -> list[Job]:
    """Want a piece of every range: its function takes the range's two ends first."""
    return [Job(f"{folder}/{low:012d}", (low, high, *arguments), digest([low, high, asked])) for low, high in bounds]


def ranges(end: int, step: int) -> list[tuple[int, int]]:
    """Cut 0 to ``end`` into ranges."""
    return [(low, min(low + step, end)) for low in range(0, end, step)]


@dataclass(frozen=True)
class Piece:
    """A piece that is there: its receipt."""

    folder: str
    asked: str
    sha256: dict[str, str]  # by file
    counts: Counts


def made(store: Store, jobs: Sequence[Job], make: Make, *shared: object) -> list[Piece]:
    """Make the pieces that are not there yet, and give all, in the order of the jobs.

    Args:
        shared: what ``make`` takes behind a job's arguments, sent to every machine once.
    """
    done = {job.folder: piece for job in jobs if (piece := read_piece(store, job)) is not None}
    missing = [job for job in jobs if job.folder not in done]
    if jobs:
        logger.info("pieces=%s done=%d to_make=%d", jobs[0].folder.rpartition("/")[0], len(done), len(missing))
    if len(jobs) == 1:
        found = [make_piece(store.url, job, make, *shared) for job in missing]
    else:
        found = _made_by_ray(store, missing, make, shared) if missing else []
    done |= {piece.folder: piece for piece in found}
    return [done[job.folder] for job in jobs]


def make_piece(store_url: str, job: Job, make: Make, *shared: object) -> Piece:
    """Make one piece: its files, then its receipt."""
    arrays, counts = make(store_url, *job.arguments, *shared)
    store, sha256 = Store(store_url), {}
    with store.scratch(job.folder) as place:
        for name, array in arrays.items():
            path = place / f"{name}.npy"
            np.save(path, array)
            sha256[path.name] = sha256_of(path)
            store.put_file(f"{job.folder}/{path.name}", path)
    piece = Piece(job.folder, job.asked, sha256, counts)
    store.replace_json(f"{job.folder}/{RECEIPT}", asdict(piece))
    return piece


def read_piece(store: Store, job: Job) -> Piece | None:
    """Read a piece's receipt; None if it is not there, of something else, or anything of it is missing or damaged."""
    try:
        piece = Piece(**store.read_json(f"{job.folder}/{RECEIPT}"))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if (piece.folder, piece.asked) != (job.folder, job.asked):
        return None
    with tempfile.TemporaryDirectory(prefix="rayclip-pieces-") as scratch:
        try:
            for name, digest in piece.sha256.items():
                store.get_checked(f"{job.folder}/{name}", digest, Path(scratch))
        except IncompleteError as error:
            logger.warning("piece=%s made again: %s", job.folder, error)
            return None
    return piece


def mapped(store: Store, piece: Piece, name: str, scratch: Path) -> NDArray[Any]:
    """Map one array of a piece; far from the store, a copy of it in ``scratch``.

    Raises:
        IncompleteError: the file is missing.
    """
    try:
        path = store.get_file(f"{piece.folder}/{name}.npy", scratch)
        return np.asarray(np.load(path, mmap_mode="r"))
    except FileNotFoundError as error:
        raise IncompleteError(f"{piece.folder}/{name}.npy is missing; run the same command again") from error


def pairs_of(store: Store, pieces: Sequence[Piece]) -> list[Pairs]:
    """Read the pairs that pieces hold."""
    with tempfile.TemporaryDirectory(prefix="rayclip-pieces-") as scratch:
        names = ("a", "b", "similarity", "hamming")
        return [Pairs(*(np.array(mapped(store, one, name, Path(scratch))) for name in names)) for one in pieces]


def digest(*parts: object) -> str:
    """Digest what can be written as JSON, and arrays."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
    return whole.hexdigest()


def _made_by_ray(store: Store, jobs: Sequence[Job], make: Make, shared: tuple[object, ...]) -> list[Piece]:
    compute.start_ray()
    task, references = ray.remote(make_piece).options(num_cpus=1), [ray.put(one) for one in shared]
    found: list[Piece] = []
    waiting = [task.remote(store.url, job, make, *references) for job in jobs]
    while waiting:
        ready, waiting = ray.wait(waiting)
        found += compute.get(ready)
        alive()
    return found
