"""Sockets for httpcore2, on the event loop's own transports.

httpcore2's way through anyio costs twice the CPU for each piece of an answer, and sends the head of a request apart
from its body: whoever reads it is woken twice. Here what is written waits for the first read behind it.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar, cast

import httpcore2

_T = TypeVar("_T")

# Of an answer that its reader has not taken, and of a request that is written in pieces.
_MOST_BYTES = 256 * 1024
_MOST_HELD = 64 * 1024

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


class LoopBackend(httpcore2.AsyncNetworkBackend):
    """Connects within the running event loop; options of sockets are not set.

    Both raise ConnectError, Scarce, Crowded or ConnectTimeout.
    """

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2 names it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        local = None if local_address is None else (local_address, 0)
        loop = asyncio.get_running_loop()
        return await _connected(loop.create_connection(_Protocol, host, port, local_addr=local), timeout)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return await _connected(asyncio.get_running_loop().create_unix_connection(_Protocol, path), timeout)


async def _connected(
    connecting: Awaitable[tuple[asyncio.BaseTransport, _Protocol]],
    timeout: float | None,  # noqa: ASYNC109
) -> _Stream:
    try:
        async with asyncio.timeout(timeout):
            _, protocol = await connecting
    except TimeoutError as error:
        raise httpcore2.ConnectTimeout(str(error)) from error
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
    """One reads and one writes."""

    def __init__(self, protocol: _Protocol) -> None:
        self._protocol = protocol
        self._held = bytearray()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """All that has come, b"" at the end. Raises ReadTimeout."""
        protocol = self._protocol
        self._send_held()
        if not protocol.received and not protocol.ended:
            protocol.news = asyncio.get_running_loop().create_future()
            try:
                await _within(timeout, protocol.news)
            except TimeoutError as error:
                raise httpcore2.ReadTimeout(str(error)) from error
        data = bytes(protocol.received)
        protocol.received.clear()
        if len(data) > _MOST_BYTES and not protocol.ended:
            protocol.transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Sent at the latest when an answer is waited for. Raises WriteError or WriteTimeout."""
        protocol = self._protocol
        if protocol.ended:
            raise httpcore2.WriteError("the other end is gone")
        self._held += buffer
        if len(self._held) < _MOST_HELD:
            return
        self._send_held()
        if protocol.room is not None:
            try:
                await _within(timeout, asyncio.shield(protocol.room))
            except TimeoutError as error:
                raise httpcore2.WriteTimeout(str(error)) from error

    def _send_held(self) -> None:
        if self._held and not self._protocol.ended:
            self._protocol.transport.write(bytes(self._held))
        self._held.clear()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        """The same stream, encrypted from here on. Raises ConnectError or ConnectTimeout."""
        protocol = self._protocol
        loop = asyncio.get_running_loop()
        upgrading = loop.start_tls(protocol.transport, protocol, ssl_context, server_hostname=server_hostname)
        try:
            transport = await _within(timeout, upgrading)
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout(str(error)) from error
        except (OSError, ssl.SSLError) as error:
            raise httpcore2.ConnectError(str(error)) from error
        if transport is None:
            raise httpcore2.ConnectError("the other end is gone")
        protocol.transport = transport
        return self

    async def aclose(self) -> None:
        self._protocol.transport.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # while it should be idle: its end, or what nobody asked for
            return self._protocol.ended or bool(self._protocol.received)
        if info == "ssl_object":
            return self._protocol.transport.get_extra_info(info)
        return None


async def _within(timeout: float | None, waiting: Awaitable[_T]) -> _T:  # noqa: ASYNC109
    if timeout is None:
        return await waiting
    async with asyncio.timeout(timeout):
        return await waiting


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
