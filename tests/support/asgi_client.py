"""A client that calls an ASGI application directly, with no socket between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any


def asked_from(app: Any, address: str) -> Any:
    """The application as whoever is at ``address`` asks it."""

    async def asked(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await app({**scope, "client": (address, 50000)}, receive, send)

    return asked


class Response:
    """What an application sent: ``writes`` are the bodies, one per ``send``."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.writes: list[bytes] = []
        self.complete = False

    @property
    def body(self) -> bytes:
        return b"".join(self.writes)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        body = self.json
        assert body.keys() == {"error"}
        assert body["error"].keys() == {"message", "type", "param", "code"}
        return body["error"]

    @property
    def frames(self) -> list[str]:
        """The frames of an SSE body, each without its closing blank line."""
        text = self.body.decode()
        assert text.endswith("\n\n")
        return text[:-2].split("\n\n")

    @property
    def events(self) -> list[Any]:
        """The JSON events of a complete SSE body; ``[DONE]`` must end it."""
        *frames, done = [frame for frame in self.frames if not frame.startswith(":")]
        assert done == "data: [DONE]"
        return [json.loads(frame.removeprefix("data: ")) for frame in frames]


class Connection:
    """One request under way: ``disconnect()`` is the client hanging up, ``task`` the application's call."""

    def __init__(self) -> None:
        self.response = Response()
        self.task: asyncio.Task[None]
        self._gone = asyncio.Event()
        self._news = asyncio.Condition()

    def disconnect(self) -> None:
        self._gone.set()

    async def until_writes(self, n: int) -> None:
        """Wait for the ``n``-th write of the body."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.response.writes) >= n)

    async def send(self, message: dict[str, Any]) -> None:
        if self._gone.is_set():
            return
        response = self.response
        if message["type"] == "http.response.start":
            assert not response.status, "two starts"
            response.status = message["status"]
            names = [name for name, _ in message["headers"]]
            assert len(set(names)) == len(names), "a header twice"
            assert all(name == name.lower() for name in names)
            response.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            assert response.status, "body before start"
            assert not response.complete, "write after the end"
            response.writes.append(message["body"])
            response.complete = not message.get("more_body", False)
        async with self._news:
            self._news.notify_all()


class AsgiClient:
    def __init__(self, app: Any) -> None:
        self._app = app

    async def get(self, path: str, method: str = "GET", **headers: str) -> Response:
        async with self.open(method, path, [b""], headers) as connection:
            await connection.task
        return connection.response

    async def post(self, path: str, body: Any, **headers: str) -> Response:
        """``body``: bytes as they are, an iterable of byte chunks, or a value to send as JSON."""
        async with self.open("POST", path, _chunks(body), headers) as connection:
            await connection.task
        assert connection.response.complete
        return connection.response

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        chunks: Iterable[bytes],
        headers: dict[str, str] | None = None,
        http_version: str = "1.1",
    ) -> AsyncIterator[Connection]:
        """A request whose reply is read piece by piece; the client hangs up at the end of the context."""
        connection = Connection()
        pending = list(chunks)

        async def receive() -> dict[str, Any]:
            if pending:
                chunk = pending.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(pending)}
            await connection._gone.wait()
            return {"type": "http.disconnect"}

        named = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in (headers or {}).items()}
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": http_version,
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        }
        connection.task = asyncio.create_task(self._app(scope, receive, connection.send))
        try:
            yield connection
        finally:
            connection.disconnect()
            await asyncio.wait_for(connection.task, 30)

    def open_post(self, path: str, body: Any) -> Any:
        return self.open("POST", path, _chunks(body))


def _chunks(body: Any) -> list[bytes]:
    if isinstance(body, bytes):
        return [body]
    if isinstance(body, (dict, str)):
        return [json.dumps(body).encode()]
    return list(body)
