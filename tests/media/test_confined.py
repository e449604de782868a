"""What the process that encodes media leaves to others."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

from llamafast.media.confined import _SCHED_SETATTR, _SchedAttr

TELLS = """
import os, threading
from llamafast.media.confined import give_way
give_way(5)
ids = [threading.get_native_id()]
started = threading.Thread(target=lambda: ids.append(threading.get_native_id()) or print(*ids, flush=True) or input())
started.start()
started.join()
"""


def turn_of(thread: int) -> tuple[int, int]:
    """A thread's niceness, and its turns in nanoseconds, by sched_getattr(2)."""
    turns = _SchedAttr()
    size = ctypes.sizeof(turns)
    number = _SCHED_SETATTR[platform.machine()] + 1
    assert ctypes.CDLL(None).syscall(number, thread, ctypes.byref(turns), size, 0) == 0
    return turns.sched_nice, turns.sched_runtime


def test_others_go_first_and_at_once():
    with subprocess.Popen([sys.executable, "-c", TELLS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        told = [turn_of(int(thread)) for thread in process.stdout.readline().split()]
        process.stdin.close()
    assert [niceness for niceness, _ in told] == [os.getpriority(os.PRIO_PROCESS, 0) + 5] * 2
    if tuple(map(int, platform.release().split(".")[:2])) >= (6, 12):
        assert [turn for _, turn in told] == [100_000_000] * 2
