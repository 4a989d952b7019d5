"""What a run costs while it runs: memory, Ray's store, and the processor time of each stage, over all its processes."""

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from types import TracebackType
from typing import Self

import psutil

INTERVAL_S = 0.5
SHARED_MEMORY = Path("/dev/shm")  # where Ray keeps objects on Linux
# What Ray calls its workers, and the stage they do the work of; the decoder is below its preprocessor.
STAGES = {"Preprocess": "preprocess", "pipeline.embedding.sandbox": "preprocess", "Encode": "encode"}
TASKS = ("ray::Read", "ray::MapBatches", "ray::IDLE")  # workers that read and write in turn


@contextmanager
def every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Make a call again and again in a thread, until the block is left, and once more then."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            call()
        call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@dataclass
class Watch:
    """Samples twice a second between entering and leaving; the fields hold what was seen."""

    pid: int | None = None  # of the process that is watched with all below it; None: this one
    peak_bytes: int = 0  # of all processes, what they share counted once
    peak_anonymous_bytes: int = 0  # of all processes, without what is mapped of files, which can be read again
    peak_store_bytes: int = 0  # of Ray's object store: what /dev/shm holds beyond what it held before
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # by stage, of processes that were there to be sampled
    gpu_busy: float | None = None  # share of the time, as nvidia-smi says; None without one

    def __enter__(self) -> Self:
        self._head = psutil.Process(self.pid)
        self._first = _spent(_family(self._head))
        self._last: dict[psutil.Process, tuple[str, float]] = {}
        self._busy: list[float] = []
        self._shared_before = _shared_bytes()
        self._has_gpu = shutil.which("nvidia-smi") is not None
        self._sampling = every(INTERVAL_S, self._sample)
        self._sampling.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sampling.__exit__(None, None, None)
        seconds: dict[str, float] = defaultdict(float)
        for process, (stage, spent) in self._last.items():
            seconds[stage] += spent - self._first.get(process, 0.0)
        self.cpu_seconds = {stage: round(spent, 1) for stage, spent in sorted(seconds.items())}
        self.gpu_busy = round(mean(self._busy), 3) if self._busy else None

    def _sample(self) -> None:
        total = anonymous = 0
        for process in _family(self._head):
            try:
                self._last[process] = (_stage(process, is_driver=process == self._head), _cpu_seconds(process))
                memory = process.memory_full_info()
                total += getattr(memory, "pss", memory.uss)
                anonymous += memory.rss - getattr(memory, "shared", 0)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak_bytes = max(self.peak_bytes, total)
        self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, anonymous)
        self.peak_store_bytes = max(self.peak_store_bytes, _shared_bytes() - self._shared_before)
        self._busy += _gpu_busy() if self._has_gpu else []


@dataclass(frozen=True)
class Spent:
    """What a command took."""

    seconds: float
    peak_bytes: int


def measured_command(module: str, *flags: str) -> Spent:
    """Run one of our jobs to its end in a process of its own, and drop what it prints."""
    began = time.perf_counter()
    command = [sys.executable, "-m", module, *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with Watch(process.pid) as watch:  # not wait4's ru_maxrss, which begins with this process's own
        process.wait()
        seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}")
    return Spent(round(seconds, 2), watch.peak_bytes)


def _family(head: psutil.Process) -> list[psutil.Process]:
    try:
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _spent(processes: list[psutil.Process]) -> dict[psutil.Process, float]:
    spent = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            spent[process] = _cpu_seconds(process)
    return spent


def _stage(process: psutil.Process, *, is_driver: bool) -> str:
    if is_driver:
        return "driver"
    title = " ".join(process.cmdline())
    for part, stage in STAGES.items():
        if part in title:
            return stage
    return "read and write" if title.startswith(TASKS) else "Ray"


def _shared_bytes() -> int:
    return shutil.disk_usage(SHARED_MEMORY).used if SHARED_MEMORY.is_dir() else 0


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _gpu_busy() -> list[float]:
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return [float(line) / 100 for line in asked.stdout.split()] if asked.returncode == 0 else []
