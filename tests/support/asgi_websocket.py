"""A WebSocket client that calls an ASGI application directly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from support.asgi_client import Response


class Socket:
    """The client's end. ``closed`` is the code the application closed with, ``refusal`` what it answered an upgrade
    with that it did not accept, ``sent`` the kinds of what it sent, read or not."""

    def __init__(self) -> None:
        self.refusal = Response()
        self.task: asyncio.Task[None]
        self.closed: int | None = None
        self.accepted = False
        self.sent: list[str] = []
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_app: asyncio.Queue[Any] = asyncio.Queue()
        self._reads = asyncio.Event()
        self._reads.set()

    def stop_reading(self) -> None:
        self._reads.clear()

    def send(self, frame: Any) -> None:
        """A value to send as JSON, text as it is, or bytes as a binary frame."""
        kind = "bytes" if isinstance(frame, bytes) else "text"
        data = frame if isinstance(frame, (bytes, str)) else json.dumps(frame)
        self._to_app.put_nowait({"type": "websocket.receive", kind: data})

    def create(self, **fields: Any) -> None:
        self.send({"type": "response.create", **fields})

    def disconnect(self) -> None:
        self._to_app.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def event(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._from_app.get(), 30)

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """The events up to the first of type ``kind``."""
        events = [await self.event()]
        while events[-1]["type"] != kind:
            events.append(await self.event())
        return events

    async def answer(self, **fields: Any) -> dict[str, Any]:
        """The Response that a request ends with."""
        self.create(**fields)
        return (await self.until("response.completed"))[-1]["response"]

    async def asgi_send(self, message: dict[str, Any]) -> None:
        assert self.closed is None, "a frame after the close"
        self.sent.append(message["type"])
        await self._reads.wait()
        if message["type"] == "websocket.accept":
            self.accepted = True
        elif message["type"] == "websocket.http.response.start":
            self.refusal.status = message["status"]
        elif message["type"] == "websocket.http.response.body":
            self.refusal.writes.append(message["body"])
        elif message["type"] == "websocket.close":
            self.closed = message["code"]
        else:
            assert self.accepted
            self._from_app.put_nowait(json.loads(message["text"]))


@asynccontextmanager
async def websocket(
    app: Any,
    path: str = "/v1/responses",
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    explains: bool = False,
) -> AsyncIterator[Socket]:
    """An open socket; at the end of the context the client is gone. ``explains``: whether the server between takes a
    reply in place of an upgrade."""
    socket = Socket()
    socket._to_app.put_nowait({"type": "websocket.connect"})
    scope = {"type": "websocket", "path": path, "headers": list(headers), "query_string": b""}
    if explains:
        scope["extensions"] = {"websocket.http.response": {}}
    socket.task = asyncio.create_task(app(scope, socket._to_app.get, socket.asgi_send))
    try:
        yield socket
    finally:
        socket.disconnect()
        await asyncio.wait_for(socket.task, 30)
