"""What this machine lets a process use, and what the process has used. Knows nothing of Ray."""

import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

MATRIX = 2048  # rows and columns: a product of two takes a tenth of a second on a slow core


def available_cpus() -> int:
    """Count the CPUs that this process may run on and that its control group pays for; at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2; containers see their own
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else max(1, min(usable, int(quota) // int(period)))


def cache_folder() -> Path:
    """Give the folder for what can be found out or made again: nothing is lost with it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayclip"


def peak_bytes() -> int:
    """Give the most memory that this process has had at once, with what it had mapped of files."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): kilobytes on Linux


def multiply_adds_per_s() -> float:
    """Measure how fast this machine multiplies matrices of float32, on all CPUs that this process may use."""
    one = np.ones((MATRIX, MATRIX), np.float32)
    one @ one  # the first starts threads
    began = time.perf_counter()
    one @ one
    return MATRIX**3 / (time.perf_counter() - began)
