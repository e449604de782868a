"""What a process that meets strangers' files may take and do: CPU time, memory, and no life beyond its server's."""

from __future__ import annotations

import ctypes
import os
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


def bound_memory() -> None:
    """From here on no more than SPARE_BYTES beside what it has."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + SPARE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
