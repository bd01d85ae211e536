"""How many CPUs there are for this process."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cpus(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPUs that this process may use: of those it may run on, no more than its container's share of time pays for."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()  # "200000 100000": two CPUs; "max 100000": all
        return max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file outside of Linux containers; "max" is no number
        return cpus
