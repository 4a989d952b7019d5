"""What this machine lets a process use. Knows nothing of Ray."""

import os
from pathlib import Path


def available_cpus() -> int:
    """Count the CPUs that this process may run on and that its control group pays for; at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()  # cgroup v2; containers see their own
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else max(1, min(usable, int(quota) // int(period)))
