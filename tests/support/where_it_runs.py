"""Where work is done: on the event loop, or beside it."""

from __future__ import annotations

import pkgutil
import threading
from typing import Any

import pytest


def beside_the_loop(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[bool]:
    """A list that tells of each later call of what has these dotted names whether another thread than this one ran
    it."""
    here, told = threading.current_thread(), []

    def watch(work: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            told.append(threading.current_thread() is not here)
            return work(*args, **kwargs)

        return watched

    for name in names:
        monkeypatch.setattr(name, watch(pkgutil.resolve_name(name)))
    return told
