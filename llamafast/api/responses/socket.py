"""/v1/responses over WebSockets: how many are open, for how long, and how they close."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from llamafast.api.http import ClientGone, Exchange, Headers
from llamafast.api.request_log import RequestLog
from llamafast.api.websocket import GOING_AWAY, TRY_AGAIN_LATER, Refused, WebSocket
from llamafast.config import ServerConfig
from llamafast.engine.types import Tenant
from llamafast.errors import EngineUnavailable, InvalidRequest, LlamafastError, UpgradeRequired

ROUTE = "ws:/v1/responses"
_UPGRADE: Headers = ((b"upgrade", b"websocket"),)

# Whose socket it is by now; raises InvalidKey.
Whose = Callable[[], Tenant]


class SessionPort(Protocol):
    """What answers the frames of one socket."""

    async def read(self) -> None:
        """Take frames for as long as they come. Raises ClientGone or Refused."""

    async def finish(self) -> None:
        """Wait until what was taken is answered."""

    async def cancel(self) -> None:
        """End whatever is not."""

    async def tell(self, error: LlamafastError) -> None:
        """Send an error that is no answer to anything."""

    def idle_seconds_left(self) -> float:
        """For how long from now nothing may come and nothing be answered."""


class ResponseSockets:
    """Serves sockets: as many at once, and each for as long, as the config says; what comes over one is for the session
    that ``new_session`` makes for it."""

    def __init__(
        self,
        new_session: Callable[[WebSocket, Whose], SessionPort],
        request_log: RequestLog,
        config: ServerConfig,
    ) -> None:
        self._new_session = new_session
        self._request_log = request_log
        self._config = config
        self._n_open = 0
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        """Every socket closes once what runs on it is done; new ones are turned away."""
        self._draining.set()

    async def closed(self) -> None:
        """Until no socket is open."""
        await self._idle.wait()

    async def serve(self, socket: WebSocket, whose: Whose) -> None:
        """Until one side closes, or ``whose`` raises InvalidKey for one more frame. What a client leaves running is
        cancelled."""
        with suppress(ClientGone):
            await socket.accept()
            if self._draining.is_set():
                await self._turn_away(socket, GOING_AWAY, "the server is shutting down")
            elif self._n_open >= self._config.max_websockets:
                await self._turn_away(socket, TRY_AGAIN_LATER, "too many sockets are open")
            else:
                self._n_open += 1
                self._idle.clear()
                try:
                    await self._converse(socket, whose)
                except asyncio.CancelledError:
                    await socket.drop()
                    raise
                finally:
                    self._n_open -= 1
                    if not self._n_open:
                        self._idle.set()

    async def _turn_away(self, socket: WebSocket, code: int, reason: str) -> None:
        record = socket.record()
        record.status, record.error = EngineUnavailable.status, EngineUnavailable(reason)
        await socket.close(code, reason)
        self._request_log.add(record, ROUTE)

    async def _converse(self, socket: WebSocket, whose: Whose) -> None:
        session = self._new_session(socket, whose)
        reader = asyncio.create_task(session.read())
        draining = asyncio.create_task(self._draining.wait())
        try:
            idle = await self._until_over(session, reader, draining)
            if reader.done():
                reader.result()
            reader.cancel()
            await asyncio.wait((reader,))
            if draining.done():
                await session.finish()
                await socket.close(GOING_AWAY, "the server is shutting down")
            elif idle:
                await socket.close(GOING_AWAY, "the connection is idle")
            else:
                await session.tell(LifetimeReached(self._config.websocket_seconds))
                await socket.close(GOING_AWAY, "the connection is too old")
        except Refused as refused:
            await socket.close(refused.code, refused.reason)
        finally:
            reader.cancel()
            draining.cancel()
            await session.cancel()

    async def _until_over(self, session: SessionPort, *ends: asyncio.Task[object]) -> bool:
        """Wait for one of ``ends``, or for the end of the time there is. Whether that was spent idly."""
        until = time.monotonic() + self._config.websocket_seconds
        while True:
            rest = session.idle_seconds_left()
            if rest <= 0:
                return True
            rest = min(rest, until - time.monotonic())
            if rest <= 0:
                return False
            done, _ = await asyncio.wait(ends, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return False


class LifetimeReached(InvalidRequest):
    code = "websocket_connection_limit_reached"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a connection lasts at most {seconds:g} seconds; open a new one")


async def upgrade_required(exchange: Exchange) -> None:
    """Answer a GET that reaches HTTP: an upgrade where WebSockets are off, or none at all."""
    await exchange.reply_error(UpgradeRequired("send POST, or open a WebSocket where they are on"), _UPGRADE)
