"""A clock for an event loop that depends on nothing but what the test does, however busy the machine is."""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class StandingClock:
    """The time of an event loop: it stands still while anything can run, work in threads included, and jumps to the
    next timer when nothing can. No two looks at it are the same, as at others: what is left of a limit may be less than
    a float tells, and who waits for that looks again."""

    def __init__(self, loop: Any) -> None:
        self._now: float = loop.time()
        self._n_in_threads = 0
        self._select = loop._selector.select
        self._run_in_executor = loop.run_in_executor

    def __call__(self) -> float:
        self._now += 1e-7
        return self._now

    def select(self, timeout: float | None) -> Any:
        ready = self._select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self._n_in_threads:
            return self._select(None)
        self._now += timeout
        return []

    def run_in_executor(self, *args: Any) -> asyncio.Future[Any]:
        self._n_in_threads += 1
        future: asyncio.Future[Any] = self._run_in_executor(*args)
        future.add_done_callback(self._come_back)
        return future

    def _come_back(self, _: object) -> None:
        self._n_in_threads -= 1


def stand_still(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> StandingClock:
    """That of the running loop from now on, which ``modules`` read too."""
    loop: Any = asyncio.get_running_loop()
    clock = StandingClock(loop)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(loop, "run_in_executor", clock.run_in_executor)
    monkeypatch.setattr(loop._selector, "select", clock.select)
    for module in modules:
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    return clock
