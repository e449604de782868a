"""Host memory: how much is free, and that what it frees is given back."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from llamafast.engine.cgroup import PROC, memory_left, memory_limit

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BLOCK = 128 * 1024

MEMINFO = Path("/proc/meminfo")


def available_bytes(meminfo: Path = MEMINFO, proc: Path = PROC) -> int:
    """What this process could still allocate: the machine's available memory or what its control groups leave, if less.

    Where the machine does not tell, half of what it has.
    """
    machine, left = _machine(meminfo), memory_left(proc)
    return machine if left is None else min(machine, left)


def total_bytes(proc: Path = PROC) -> int:
    """What the machine has, or the control groups around this process allow, if less."""
    machine, limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), memory_limit(proc)
    return machine if limit is None else min(machine, limit)


def return_large_blocks() -> None:
    """Make the C library give freed blocks of more than LARGE_BLOCK bytes back to the system, where it is glibc.

    It starts so, but raises the limit with every large block that is freed, up to 32 MB. Blocks of many sizes that come
    and go then leave holes: a cache of 64 MB took 85 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _machine(meminfo: Path) -> int:
    try:
        for line in meminfo.read_text().splitlines():
            name, value = line.split(":", 1)
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
