"""What this machine lets a process use, and what the process has used. Knows nothing of Ray."""

import os
import resource
import sys
from pathlib import Path


def available_cpus() -> int:
    """Count the CPUs that this process may run on and that its control group pays for; at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2; containers see their own
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else max(1, min(usable, int(quota) // int(period)))


def peak_bytes() -> int:
    """Give the most memory that this process has had at once, with what it had mapped of files."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): kilobytes on Linux
