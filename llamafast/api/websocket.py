"""One WebSocket over ASGI: text frames of bounded size in, text frames out."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import msgspec

from llamafast.api.client_wait import ClientWait
from llamafast.api.http import (
    BYTES_PER_SECOND,
    JSON_TYPE,
    PIECE_BYTES,
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    error_body,
)
from llamafast.api.record import Identity, Record
from llamafast.errors import InvalidKey, LlamafastError

# RFC 6455, and 1012 to 1014 from IANA's registry
GOING_AWAY = 1001
UNSUPPORTED_DATA = 1003
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
TRY_AGAIN_LATER = 1013
# For a frame that tells of the end to one who does not read: it ends at once where the connection has been cut.
DROP_SECONDS = 1.0


class Refused(Exception):
    """What the client sent ends the connection, with ``code``."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code: int = code
        self.reason = reason


class WebSocket:
    """``accept``, then any number of ``receive`` and ``send``, then ``close`` unless the client went first.

    ``identity`` is that of the upgrade; the requests that come over the socket are counted in theirs. ``wait`` bounds
    how long a client may leave frames unread.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, wait: ClientWait, max_frame_bytes: int) -> None:
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.identity = Identity.of(scope["headers"], scope.get("client"))
        self._n_records = 0
        self._may_explain = "websocket.http.response" in scope.get("extensions", ())
        self._receive = receive
        self._send = send
        self._wait = wait
        self._sending: list[float] = []  # how long each frame may take that is being sent
        self._max_frame_bytes = max_frame_bytes

    def record(self) -> Record:
        """Of one more request."""
        self._n_records += 1
        request_id = b"%b-%d" % (self.identity.request_id, self._n_records)
        identity = self.identity._replace(request_id=request_id, named=False)
        config = self._wait.config
        return Record("WS", identity, config.unknown_fields, config.content_chars)

    async def accept(self) -> None:
        """Raises ClientGone."""
        if (await self._receive())["type"] != "websocket.connect":
            raise ClientGone
        await self._deliver({"type": "websocket.accept"})

    async def reject(self, error: LlamafastError) -> None:
        """Refuse the upgrade with ``error``; a server that cannot send a reply of ours makes it a bare 403."""
        await self._receive()
        if not self._may_explain:
            await self._deliver({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        headers = [(b"content-type", JSON_TYPE), (b"x-request-id", self.identity.request_id)]
        headers += [(b"www-authenticate", b"Bearer")] if isinstance(error, InvalidKey) else []
        await self._deliver({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
        await self._deliver({"type": "websocket.http.response.body", "body": msgspec.json.encode(error_body(error))})

    async def receive(self) -> bytes:
        """The next text frame as UTF-8. Raises ClientGone, or Refused for a frame that is binary or too large."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise ClientGone
        text = message.get("text")
        if text is None:
            raise Refused(UNSUPPORTED_DATA, "frames must be text")
        frame: bytes = text.encode()
        if len(frame) > self._max_frame_bytes:
            raise Refused(MESSAGE_TOO_BIG, f"a frame has at most {self._max_frame_bytes} bytes")
        return frame

    async def send(self, frame: bytes) -> None:
        await self._deliver({"type": "websocket.send", "text": frame.decode()}, len(frame))

    async def close(self, code: int, reason: str) -> None:
        await self._deliver({"type": "websocket.close", "code": code, "reason": reason})

    async def drop(self) -> None:
        """Let go of the connection after a send was cancelled: that send holds it for a moment more, and Granian would
        keep it until Python collects garbage."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DROP_SECONDS):
                await self._send({"type": "websocket.close", "code": GOING_AWAY, "reason": ""})

    async def _deliver(self, message: Message, n_bytes: int = 0) -> None:
        """Send what the reader must take. A frame goes as a whole, so one larger than a piece has as much more time as
        a body of the rest would have. Whoever sends at the same time waits for the same reader: time begins again with
        each frame that it has taken, and is that of the largest."""
        wait = self._wait
        sending = self._sending
        seconds = wait.config.send_seconds + max(0, n_bytes - PIECE_BYTES) / BYTES_PER_SECOND
        if not sending or seconds > max(sending):
            wait.deadline = time.monotonic() + seconds
        sending.append(seconds)
        try:
            await self._send(message)
        finally:
            sending.remove(seconds)
            wait.deadline = time.monotonic() + max(sending) if sending else 0.0
