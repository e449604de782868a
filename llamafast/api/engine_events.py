"""GET /engine/events: a snapshot of the engine each second, made once for all who watch."""

from __future__ import annotations

import asyncio
import logging
import time

from llamafast.api.engine_view import EngineView
from llamafast.api.http import Exchange
from llamafast.api.sse import EventStream, frame
from llamafast.engine.types import EnginePort
from llamafast.errors import QueueFull

log = logging.getLogger(__name__)

MOST_WATCHERS = 16
# Of one key, so that it takes four to keep everybody else from watching.
MOST_OF_KEY = 4
SECONDS = 1.0


class _Watcher:
    """Gets the newest snapshot; one that reads slowly misses those before. ``key`` is the name of whoever watches, ""
    where nobody needs one."""

    def __init__(self, key: str = "") -> None:
        self.key = key
        self._news = asyncio.Event()
        self._told = b""
        self.ended = False

    def tell(self, told: bytes) -> None:
        self._told = told
        self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    async def next(self) -> bytes:
        """b"" at the end."""
        await self._news.wait()
        self._news.clear()
        return b"" if self.ended else self._told


class EngineEvents:
    """Costs nothing while nobody watches; on the event loop. A snapshot comes every SECONDS."""

    def __init__(self, engine: EnginePort, ping_seconds: float) -> None:
        self._view = EngineView(engine)
        self._ping_seconds = ping_seconds
        self._watchers: set[_Watcher] = set()
        self._telling: asyncio.Task[None] | None = None
        self._last = b""
        self._closed = False

    async def watch(self, exchange: Exchange) -> None:
        """Raises QueueFull where MOST_WATCHERS watch, or MOST_OF_KEY by the same key."""
        await exchange.until_disconnect(self._watch(exchange), endless=True)

    def close(self) -> None:
        """End all streams, and whatever comes from here on at once."""
        self._closed = True
        for watcher in list(self._watchers):
            watcher.end()

    async def _watch(self, exchange: Exchange) -> None:
        if len(self._watchers) >= MOST_WATCHERS:
            raise QueueFull(f"{MOST_WATCHERS} clients watch already")
        key = exchange.tenant.name
        if key and sum(watcher.key == key for watcher in self._watchers) >= MOST_OF_KEY:
            raise QueueFull(f"{MOST_OF_KEY} clients with this key watch already")
        watcher = _Watcher(key)
        self._watchers.add(watcher)
        try:
            async with EventStream(exchange, self._ping_seconds) as stream:
                if self._telling is None or self._telling.done():
                    self._telling = asyncio.create_task(self._tell())
                elif self._last:
                    watcher.tell(self._last)
                while not self._closed and (told := await watcher.next()):
                    await stream.write(told)
                await stream.write(b"", more=False)
        finally:
            self._watchers.discard(watcher)
            if not self._watchers and self._telling is not None:
                self._telling.cancel()
                self._telling, self._last = None, b""
                self._view.forget()

    async def _tell(self) -> None:
        try:
            while True:
                began = time.monotonic()
                self._last = frame(self._view.snapshot())
                for watcher in self._watchers:
                    watcher.tell(self._last)
                await asyncio.sleep(max(0.0, began + SECONDS - time.monotonic()))
        except Exception:
            log.exception("the engine cannot be watched")
            self._last = b""
            for watcher in self._watchers:
                watcher.end()
