"""What comes over a WebSocket: frames, weighed as bodies are and answered or refused one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from msgspec import UNSET

from llamafast.api.body_size import BodyLimits, BodySize
from llamafast.api.http import PIECE_BYTES, error_body
from llamafast.api.record import Record
from llamafast.api.request_log import RequestLog
from llamafast.api.responses.frames import ErrorFrame
from llamafast.api.responses.socket import ROUTE, Whose
from llamafast.api.sse import encode
from llamafast.api.websocket import POLICY_VIOLATION, Refused, WebSocket
from llamafast.config import ServerConfig
from llamafast.errors import InvalidKey, LlamafastError


class Incoming:
    """One frame; ``stream_id`` is its lane, as soon as that is known. Whoever has it releases its ``size``."""

    def __init__(self, data: bytes, size: BodySize, record: Record) -> None:
        self.data = data
        self.size = size
        self.record = record
        self.stream_id: str | None = None


class Intake:
    """The frames of one socket, which have ``limits`` as bodies do. Whoever answers them notes in ``last`` when it
    did."""

    def __init__(
        self, socket: WebSocket, whose: Whose, limits: BodyLimits, request_log: RequestLog, config: ServerConfig
    ) -> None:
        self.last = time.monotonic()
        self._socket = socket
        self._whose = whose
        self._limits = limits
        self._request_log = request_log
        self._config = config

    def idle_seconds_left(self, answering: bool) -> float:
        """For how long from now nothing may come and nothing be answered."""
        return self._config.websocket_idle_seconds - (0.0 if answering else time.monotonic() - self.last)

    async def read(self, take: Callable[[Incoming], Awaitable[None]]) -> None:
        """Give each frame to ``take``, and refuse those that it does not take. Raises ClientGone or Refused."""
        while True:
            data = await self._socket.receive()
            self.last = time.monotonic()
            frame = Incoming(data, BodySize(self._limits), self._socket.record())
            if frame.record.contents is not None:
                frame.record.contents.asked(data)
            try:
                frame.record.tenant = self._whose()
                for start in range(0, len(data), PIECE_BYTES):
                    frame.size.add(data[start : start + PIECE_BYTES])
                    await asyncio.sleep(0)
                await take(frame)
            except LlamafastError as error:
                frame.size.release()
                await self.refuse(error, frame)
                if isinstance(error, InvalidKey):
                    raise Refused(POLICY_VIOLATION, error.message) from error
            except BaseException:
                frame.size.release()
                raise
            del data, frame

    async def refuse(self, error: LlamafastError, frame: Incoming) -> None:
        """Tell the client and the log."""
        frame.record.status, frame.record.error = error.status, error
        self._request_log.add(frame.record, ROUTE)
        await self.tell(error, frame.stream_id)

    async def tell(self, error: LlamafastError, stream_id: str | None = None) -> None:
        lane = UNSET if stream_id is None else stream_id
        frame = ErrorFrame(status=error.status, error=error_body(error).error, stream_id=lane)
        await self._socket.send(encode(frame))
