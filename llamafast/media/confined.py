"""What a process that meets strangers' files may take and do: CPU time, memory, and no life beyond its server's."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
import threading
import time
from pathlib import Path

# Beyond what it has mapped when it is ready: a picture of 50 million pixels in some copies, and the graph of a large
# encoder.
SPARE_BYTES = 4 << 30
_PR_SET_PDEATHSIG = 1
# sched_setattr(2), which few C libraries have, by machine; the longest turn that Linux gives.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
_LONG_TURN_NS = 100_000_000


class _SchedAttr(ctypes.Structure):
    """struct sched_attr of sched_setattr(2), its first version."""

    _fields_ = (
        ("size", ctypes.c_uint32), ("sched_policy", ctypes.c_uint32), ("sched_flags", ctypes.c_uint64),
        ("sched_nice", ctypes.c_int32), ("sched_priority", ctypes.c_uint32), ("sched_runtime", ctypes.c_uint64),
        ("sched_deadline", ctypes.c_uint64), ("sched_period", ctypes.c_uint64),
    )  # fmt: skip


class CpuLimit:
    """Ends this process where a job takes more of the CPU than it may: by the kernel, whoever holds the GIL."""

    def __init__(self) -> None:
        self._ends: dict[int, float] = {}
        self._lock = threading.Lock()

    def begin(self, job: int, seconds: float) -> None:
        with self._lock:
            self._ends[job] = time.process_time() + seconds
            self._set()

    def end(self, job: int) -> None:
        with self._lock:
            del self._ends[job]
            self._set()

    def _set(self) -> None:
        left = max(0.001, min(self._ends.values()) - time.process_time()) if self._ends else 0.0
        signal.setitimer(signal.ITIMER_PROF, left)


def confine() -> None:
    """What a process that meets strangers' files must not do: outlive its server, and leave a core of its memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def give_way(niceness: int) -> None:
    """Let others go first on the CPUs that this thread, and those it will start, share with them.

    By niceness they have more of the time. By turns as long as there are they have it at once: whoever wakes up and has
    shorter ones does not wait for the end of this one's, which is 3 ms otherwise (Linux from 6.12 on; an older one, or
    one that does not let us, goes by niceness alone).
    """
    os.nice(niceness)
    if sys.platform == "linux" and (number := _SCHED_SETATTR.get(platform.machine())):
        size = ctypes.sizeof(_SchedAttr)
        turns = _SchedAttr(size, os.SCHED_OTHER, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, _LONG_TURN_NS, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, ctypes.byref(turns), 0)


def bound_memory() -> None:
    """From here on no more than SPARE_BYTES beside what it has."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
