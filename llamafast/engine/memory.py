"""Host memory: how much is free, and that what it frees is given back."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from llamafast.engine.cgroup import PROC, memory_left, memory_limit

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BLOCK = 128 * 1024
# Of the machine's memory that is no model's: the parent, the system, what models need beyond what they are measured by.
SPARE_SHARE = 10

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


def room_of_models(max_bytes: int | None, proc: Path = PROC) -> int:
    """What several models may take together: ``max_bytes``, or all but a part of what there is."""
    total = total_bytes(proc)
    return max_bytes or total - total // SPARE_SHARE


def part_of(room: int, n_models: int, n_files: int) -> int:
    """Of the room of ``n_models`` models, what one of them may choose its context for: an even part; where its files
    are more than half of that, ``n_files`` bytes, they and an even part of the rest."""
    even = room // n_models
    return even if 2 * n_files <= even else n_files + max(0, room - n_files) // n_models


def swap_bytes(meminfo: Path = MEMINFO, proc: Path = PROC) -> int:
    """What the machine could put elsewhere of what nobody uses; none where control groups bound this process."""
    return 0 if memory_limit(proc) is not None else _field(meminfo, "SwapFree") or 0


def return_large_blocks() -> None:
    """Make the C library give freed blocks of more than LARGE_BLOCK bytes back to the system, where it is glibc.

    It starts so, but raises the limit with every large block that is freed, up to 32 MB. Blocks of many sizes that come
    and go then leave holes: a cache of 64 MB took 85 MB.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _machine(meminfo: Path) -> int:
    available = _field(meminfo, "MemAvailable")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if available is None else available


def _field(meminfo: Path, wanted: str) -> int | None:
    """Bytes; None where it is not told."""
    try:
        for line in meminfo.read_text().splitlines():
            name, value = line.split(":", 1)
            if name == wanted:
                return int(value.split()[0]) * 1024
    except (OSError, ValueError):
        pass
    return None
