"""Which cores the two sides run on. Where the system cannot bind processes, ``none`` is the only choice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Pin = Literal["client", "both", "none"]
DEFAULT_PIN: Pin = "client" if hasattr(os, "sched_setaffinity") else "none"


def cores_of(pin: Pin) -> tuple[set[int] | None, set[int] | None]:
    """The cores of the server and of the client; None leaves them free."""
    if pin == "none":
        return None, None
    every = os.sched_getaffinity(0)
    last = {max(every)}
    return (every - last or None) if pin == "both" else None, last


@contextmanager
def bound_to(cores: set[int] | None) -> Iterator[None]:
    """This process on ``cores`` for the length of the block, and what it starts there for good."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
