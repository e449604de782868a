"""How many compute threads this process should use."""

from __future__ import annotations

import os
from pathlib import Path

CPU = Path("/sys/devices/system/cpu")
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores() -> int:
    """Physical cores this process may use: hyper-threads counted once, CPU affinity and cgroup quota respected."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return max(1, os.cpu_count() or 1)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota(CGROUP_QUOTA)))


def _siblings(cpu: int) -> str:
    try:
        return (CPU / f"cpu{cpu}" / "topology" / "core_cpus_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota(path: Path) -> int:
    """The cgroup's CPU quota in whole CPUs, at least 1; no quota is a very large number."""
    try:
        quota, period = path.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return 1 << 30
