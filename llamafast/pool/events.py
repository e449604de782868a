"""GET /models/sse: every change of a model's state, as it happens, in llama-server's words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from llamafast.api.http import Exchange
from llamafast.api.sse import EventStream, frame
from llamafast.errors import QueueFull
from llamafast.pool.member import Member

MOST_WATCHERS = 16
# Changes that somebody has not taken; more end the stream.
MOST_UNREAD = 256


class Events:
    """Whoever watches is told first how things stand."""

    def __init__(self, members: Iterable[Member], ping_seconds: float) -> None:
        self._members = tuple(members)
        self._ping_seconds = ping_seconds
        self._watchers: set[asyncio.Queue[bytes | None]] = set()

    def publish(self, member: Member) -> None:
        told = _told(member)
        for unread in list(self._watchers):
            try:
                unread.put_nowait(told)
            except asyncio.QueueFull:
                self._end(unread)

    def close(self) -> None:
        for unread in list(self._watchers):
            self._end(unread)

    async def watch(self, exchange: Exchange) -> None:
        await exchange.until_disconnect(self._watch(exchange), endless=True)

    async def _watch(self, exchange: Exchange) -> None:
        if len(self._watchers) >= MOST_WATCHERS:
            raise QueueFull(f"{MOST_WATCHERS} clients watch already")
        unread: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_UNREAD)
        self._watchers.add(unread)
        try:
            async with EventStream(exchange, self._ping_seconds) as stream:
                await stream.write(b"".join(map(_told, self._members)))
                while (told := await unread.get()) is not None:
                    await stream.write(told)
                await stream.write(b"", more=False)
        finally:
            self._watchers.discard(unread)

    def _end(self, unread: asyncio.Queue[bytes | None]) -> None:
        self._watchers.discard(unread)
        while unread.full():
            unread.get_nowait()
        unread.put_nowait(None)


def _told(member: Member) -> bytes:
    data: dict[str, Any] = {"status": member.state.word}
    if member.failed:
        data["failed"] = True
    if member.exit_code:
        data["exit_code"] = member.exit_code
    return frame({"model": member.name, "event": "status_change", "data": data})
