"""Which CPUs a thread may run on: the wire keeps off those that compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def allowed_cpus() -> set[int] | None:
    """Those this thread may run on; None where threads cannot be confined."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


@contextmanager
def on_cpus(cpus: set[int] | None) -> Iterator[None]:
    """Inside, this thread may run on ``cpus``; those it starts may for good."""
    before = allowed_cpus()
    if cpus is None or before is None:
        yield
        return
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def leave_to_compute(n_threads: int) -> None:
    """Keep this thread, and those it will start, off as many CPUs as the engine computes with.

    Every step wakes the event loop. A wake-up on the CPU that computes takes it away from ggml in the middle of a step:
    with one compute thread on two CPUs, 16 streams of a tiny model lost a tenth of their speed to that. Where no CPU
    is left over, or none computes, nothing is confined. The engine's threads are started ``on_cpus``.
    """
    if n_threads and hasattr(os, "sched_setaffinity"):
        spare = sorted(os.sched_getaffinity(0))[n_threads:]
        if spare:
            os.sched_setaffinity(0, spare)
