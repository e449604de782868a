"""What the event loop has the engine thread do between two steps, and waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from llamafast.errors import LlamafastError, ShuttingDown

T = TypeVar("T")


class BetweenSteps:
    """Event loop. ``order`` has something called by the engine thread before its next step."""

    def __init__(self, order: Callable[[Callable[[], object]], object]) -> None:
        self._order = order
        self._waiting: set[asyncio.Future[Any]] = set()
        self._closed: LlamafastError | None = None

    async def do(self, work: Callable[[], T]) -> T:
        """What ``work`` comes to. Raises EngineUnavailable where the engine ends before."""
        if self._closed is not None:
            raise ShuttingDown()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                loop.call_soon_threadsafe(_fail, done, error)
            else:
                loop.call_soon_threadsafe(_resolve, done, result)

        self._waiting.add(done)
        try:
            self._order(run)
            return await done
        finally:
            self._waiting.remove(done)

    def close(self, error: LlamafastError) -> None:
        """Nobody is to wait any longer."""
        self._closed = error
        for done in self._waiting:
            _fail(done, error)


def _resolve(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], error: Exception) -> None:
    if not done.done():
        done.set_exception(error)
