"""Server-sent events: chunk → frame bytes, and the open stream they go to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, Self

import msgspec

from llamafast.api.http import Exchange, Headers
from llamafast.engine.types import Event, Generation
from llamafast.errors import LlamafastError, internal_error

log = logging.getLogger(__name__)

PING_SECONDS = 15.0

HEADERS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
HOLE = msgspec.Raw(b"\0")


class StreamForm(NamedTuple):
    """What stands around the frames of an API's streams: what marks a good end, what says that a silent one lives, and
    what comes before the data of an error."""

    done: bytes
    ping: bytes
    error: bytes


OPENAI_STREAM = StreamForm(b"data: [DONE]\n\n", b": ping\n\n", b"")

encode = msgspec.json.Encoder().encode


class Frames(Protocol):
    """How one request's reply looks in pieces; each method gives any number of whole frames."""

    def opening(self) -> Iterable[bytes]:
        """What precedes all generated text; each item becomes one write."""
        ...

    def event(self, event: Event) -> bytes:
        """What one Event looks like, possibly nothing."""
        ...

    def closing(self, generation: Generation) -> bytes:
        """What follows the last choice, possibly nothing."""
        ...


def frame(event: Any) -> bytes:
    return b"data: %b\n\n" % encode(event)


def frame_pieces(event: Any) -> list[bytes]:
    """The frame of ``event`` cut at its ``HOLE``s: what a frame per token is joined from.

    A NUL byte marks a hole; JSON escapes NUL in strings, so it occurs nowhere else.
    """
    return frame(event).split(b"\0")


def extended(frame: bytes, name: str, value: Any) -> bytes:
    """``frame``, whose data is an object with fields, with one more."""
    return b'%b,"%b":%b}\n\n' % (frame[:-3], name.encode(), encode(value))


class EventStream:
    """The open body of a streamed reply, as an async context.

    Inside it, after ``ping_seconds`` without a write, a ping tells proxies and clients that the stream lives; a lock
    keeps that from falling into another write. The status has gone out, so what goes wrong inside is the last event: an
    error as it is, a bug as one, which the log has.
    """

    __slots__ = ("_exchange", "_form", "_headers", "_last", "_lock", "_ping_seconds", "_pinger")

    def __init__(
        self, exchange: Exchange, ping_seconds: float, headers: Headers = (), form: StreamForm = OPENAI_STREAM
    ) -> None:
        """``headers`` are sent beside those of every stream."""
        self._exchange = exchange
        self._form = form
        self._headers = headers
        self._ping_seconds = ping_seconds
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._exchange.start(200, (*HEADERS, *self._headers))
        self._last = asyncio.get_running_loop().time()
        self._pinger = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(self, _: object, error: BaseException | None, trace: object) -> bool:
        self._pinger.cancel()
        if isinstance(error, LlamafastError):
            await self._fail(error)
        elif isinstance(error, Exception):
            request_id = self._exchange.identity.request_id.decode()
            log.error("request %s failed in mid-stream", request_id, exc_info=error)
            await self._fail(internal_error())
        return isinstance(error, Exception)

    async def write(self, frames: bytes, *, more: bool = True) -> None:
        """Send whole frames in one piece."""
        async with self._lock:
            await self._exchange.write(frames, more=more)
        self._last = asyncio.get_running_loop().time()

    async def end(self, frames: bytes) -> None:
        """Send the last frames; the stream is over as it should be."""
        self._pinger.cancel()
        await self.write(frames + self._form.done, more=False)

    async def _fail(self, error: LlamafastError) -> None:
        """Send the error as the last event, without the mark of a good end."""
        self._exchange.error = error
        _, body = self._exchange.told(error)
        await self.write(self._form.error + frame(body), more=False)

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            rest = self._last + self._ping_seconds - loop.time()
            if rest > 0:
                await asyncio.sleep(rest)
            else:
                await self.write(self._form.ping)
