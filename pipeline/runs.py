"""What a run leaves of itself: `runs/<id>/run.json`, written when it starts and again when it ends.

In: what the job finds out as it goes. Out: one JSON file that says what was asked for, of what software and input, what
was done, how long each stage took, and how it ended. A run that was killed has no exit status. Knows no stage.
"""

import logging
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import RunError
from pipeline.filesystem import STORE_ERRORS
from pipeline.store import Store

logger = logging.getLogger(__name__)

VERSIONED = ("rayclip", "ray", "torch", "open_clip_torch", "faiss-gpu", "faiss-cpu", "pillow", "pyarrow", "numpy")
HISTORY = 20  # earlier runs that a run names
RUNS, RUN_FILE = "runs", "run.json"


@dataclass
class Run:
    """run.json. What a stage has not found out yet is None or empty."""

    id: str
    job: str
    started: str  # UTC
    config: dict[str, Any]  # as resolved, in JSON's types
    versions: dict[str, str]
    git_revision: str | None
    table: str | None = None
    seconds: float = 0.0
    exit_status: int | None = None  # None: still running, or killed
    message: str | None = None  # why it is not 0
    cluster: dict[str, float] = field(default_factory=dict)  # nodes, and Ray's resources by name
    model: dict[str, Any] = field(default_factory=dict)  # id, space, d, sha256 by file
    # shards, rows, bytes; new, rewritten, removed: how many; unreadable: why, by URL; snapshot: where fingerprints are
    source: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)  # rows_in, embedded, rejected, reasons: {reason: rows}
    # of this run: rows, reused, bytes_written, images_per_s, steady_images_per_s
    now: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)  # seconds, in the order they began
    index: dict[str, Any] | None = None  # the card of the version that is published
    history: list[dict[str, Any]] = field(default_factory=list)  # earlier runs of the table, the newest first

    @property
    def at(self) -> str:
        """Name the stage that began last."""
        return next(reversed(self.stages), "start")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; twice the same adds up."""
        began = time.monotonic()
        before = self.stages.pop(name, 0.0)
        self.stages[name] = before
        logger.info("run=%s stage=%s", self.id, name)
        try:
            yield
        finally:
            self.stages[name] = round(before + time.monotonic() - began, 2)


def new_run(job: str, config: Config) -> Run:
    """Begin the record of a run."""
    now = time.gmtime()
    return Run(
        id=f"{time.strftime('%Y%m%dT%H%M%SZ', now)}-{secrets.token_hex(3)}",
        job=job,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
        config=config.model_dump(mode="json"),
        versions=_versions(),
        git_revision=_git_revision(),
    )


@contextmanager
def recorded(store: Store, run: Run) -> Iterator[Run]:
    """Write a run's record once more however it ends, if one was written; what ended it passes through."""
    began = time.monotonic()
    try:
        yield run
        run.exit_status = 0
    except RunError as error:
        run.exit_status, run.message = error.exit_status, str(error)
        raise
    except KeyboardInterrupt:
        run.exit_status, run.message = 130, "interrupted"
        raise
    except BaseException as error:
        run.exit_status, run.message = 1, f"{type(error).__name__}: {error}"
        raise
    finally:
        run.seconds = round(time.monotonic() - began, 2)
        try:
            if run.table is not None and store.exists(f"{run_folder(run.id)}/{RUN_FILE}"):
                write_run(store, run)
        except STORE_ERRORS as error:  # as where the disk is full: what ended the run is what should be heard
            logger.warning("run=%s not recorded: %s", run.id, error)


def run_folder(run_id: str) -> str:
    """Give a run's folder below the store's root."""
    return f"{RUNS}/{run_id}"


def write_run(store: Store, run: Run) -> None:
    """Write run.json."""
    store.replace_json(f"{run_folder(run.id)}/{RUN_FILE}", asdict(run))


def read_run(store: Store, run_id: str) -> Run | None:
    """Read a run's record; None, with a warning, if it is damaged or gone."""
    try:
        return Run(**store.read_json(f"{run_folder(run_id)}/{RUN_FILE}"))
    except (FileNotFoundError, ValueError, TypeError) as error:
        logger.warning("run=%s cannot be read: %s", run_id, error)
        return None


def earlier_runs(store: Store, table: str) -> list[Run]:
    """Read the records of a table's runs, the newest first; those that are damaged are left out."""
    runs = []
    for name in reversed(store.folders(RUNS)):
        run = read_run(store, name)
        if run is not None and run.table == table:
            runs.append(run)
        if len(runs) == HISTORY:
            break
    return runs


def brief(run: Run) -> dict[str, Any]:
    """Say of an earlier run what a later one's history has of it."""
    fields = ("id", "job", "started", "seconds", "exit_status", "message", "counts", "now")
    return {name: getattr(run, name) for name in fields}


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # one of two FAISS wheels
            continue
    return found


def _git_revision() -> str | None:
    """Name the commit that this code was checked out from; None where it was installed or copied."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
