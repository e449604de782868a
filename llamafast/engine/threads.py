"""How many compute threads this process should use."""

from __future__ import annotations

import os
from pathlib import Path

from llamafast.engine.cgroup import cpu_quota

CPU = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Physical cores this process may use: hyper-threads counted once, CPU affinity and cgroup quotas respected."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return max(1, os.cpu_count() or 1)
    cores = {_siblings(cpu) for cpu in allowed}
    quota = cpu_quota()
    return len(cores) if quota is None else max(1, min(len(cores), int(quota)))


def _siblings(cpu: int) -> str:
    try:
        return (CPU / f"cpu{cpu}" / "topology" / "core_cpus_list").read_text().strip()
    except OSError:
        return str(cpu)
