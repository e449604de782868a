"""Unix sockets for httpcore2, on the event loop's own transports.

httpcore2's way through anyio costs a proxy twice the CPU for each piece of an answer.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from typing import Any, cast

import httpcore2

# Of an answer that its reader has not taken.
_MOST_BYTES = 256 * 1024


# What this process or the system has no more of, while the other end may be there.
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# The other end's queue is full of connections that it has not taken yet.
_CROWDED = errno.EAGAIN


def is_scarcity(error: OSError) -> bool:
    """Whether a connection may be had a moment later, where this was raised instead."""
    return error.errno in _SCARCE or error.errno == _CROWDED


class Scarce(httpcore2.ConnectError):
    """No connection can be had just now."""


class Crowded(Scarce):
    """As the other end has too many that it has not taken yet."""


class UnixBackend(httpcore2.AsyncNetworkBackend):
    """Connects to Unix sockets, and to nothing else."""

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2 names it
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises ConnectError, Scarce or Crowded."""
        try:
            _, protocol = await asyncio.get_running_loop().create_unix_connection(_Protocol, path)
        except OSError as error:
            if error.errno == _CROWDED:
                raise Crowded(str(error)) from error
            raise (Scarce if is_scarcity(error) else httpcore2.ConnectError)(str(error)) from error
        return _Stream(protocol)


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = False
        self.news: asyncio.Future[None] | None = None  # for who reads
        self.room: asyncio.Future[None] | None = None  # for who writes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if len(self.received) > _MOST_BYTES:
            self.transport.pause_reading()
        _wake(self.news)

    def eof_received(self) -> None:
        self.ended = True
        _wake(self.news)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        _wake(self.news)
        self.resume_writing()

    def pause_writing(self) -> None:
        self.room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        room, self.room = self.room, None
        _wake(room)


class _Stream(httpcore2.AsyncNetworkStream):
    """One reads and one writes; how long they may take is for them to say."""

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """All that has come, b"" at the end."""
        protocol = self._protocol
        if not protocol.received and not protocol.ended:
            protocol.news = asyncio.get_running_loop().create_future()
            await protocol.news
        data = bytes(protocol.received)
        protocol.received.clear()
        if len(data) > _MOST_BYTES and not protocol.ended:
            protocol.transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Raises WriteError."""
        protocol = self._protocol
        if protocol.ended:
            raise httpcore2.WriteError("the other end is gone")
        protocol.transport.write(buffer)
        if protocol.room is not None:
            await asyncio.shield(protocol.room)

    async def aclose(self) -> None:
        self._protocol.transport.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # while it should be idle: its end, or what nobody asked for
            return self._protocol.ended or bool(self._protocol.received)
        return None


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
