"""How many compute threads this process should use."""

from __future__ import annotations

import os
from pathlib import Path

from llamafast.config import ModelConfig
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


def too_many_threads(config: ModelConfig) -> str | None:
    """What is to be told of threads that wait for one another, as there are more of them than cores."""
    n_cores = physical_cores()
    for key, n in (("threads", config.threads), ("threads_batch", config.threads_batch)):
        if n is not None and n > n_cores:
            return f"model.{key} {n} is more than the {n_cores} cores that this process may use: steps will be slow"
    return None


def _siblings(cpu: int) -> str:
    try:
        return (CPU / f"cpu{cpu}" / "topology" / "core_cpus_list").read_text().strip()
    except OSError:
        return str(cpu)
