"""One server, and requests to it that are tried again while that may help."""

from __future__ import annotations

import asyncio
from typing import Any

import httpcore2
import msgspec

from llamafast.batch.lines import Fault, Request, Response, Result
from llamafast.loop_sockets import LoopBackend
from llamafast.server_url import check_key, read_url

# Told to come back later: the queue is full, or the server loads or stops; in Anthropic's words the last.
_LATER = frozenset({429, 503, 529})
# What is raised where nobody answers.
NOBODY = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)
TRIES = 8
LONGEST_WAIT = 60.0
CONNECT_SECONDS = 10.0


class Client:
    """``url`` is a server's address, with or without /v1; with ``uds`` it listens on that Unix socket. Raises
    ConfigError for an address or a key that is none."""

    def __init__(self, url: str, key: str = "", *, uds: str | None = None) -> None:
        self._root = read_url(url).root
        self._headers = [(b"content-type", b"application/json")]
        if key:
            self._headers.append((b"authorization", b"Bearer " + check_key(key).encode()))
        self._uds = uds
        # A pool looks through all its connections at each request: each has one.
        self._pools: list[httpcore2.AsyncConnectionPool] = []
        self._idle: list[httpcore2.AsyncConnectionPool] = []

    async def close(self) -> None:
        for pool in self._pools:
            await pool.aclose()

    async def get(self, path: str) -> Any:
        """JSON; None where there is none. Raises NOBODY where nobody answers."""
        response = await self._request("GET", path, _patience(10.0))
        if response.status != 200:
            return None
        try:
            return msgspec.json.decode(response.content)
        except (msgspec.MsgspecError, RecursionError):
            return None

    async def post(self, request: Request) -> Result:
        """What comes of it, whatever that is."""
        for tried in range(TRIES):
            wait = min(LONGEST_WAIT, 0.5 * 2**tried)
            try:
                response = await self._request("POST", request.url, _patience(), request.body)
            except NOBODY as error:
                fault = Fault(code="connection_error", message=f"{type(error).__name__}: {error}")
                result = Result(custom_id=request.custom_id, error=fault)
            else:
                headers = {name.lower(): value for name, value in response.headers}
                request_id = headers.get(b"x-request-id", b"").decode("latin-1")
                body = Response(response.status, request_id, _body(response.content))
                result = Result(custom_id=request.custom_id, response=body)
                if response.status not in _LATER:
                    return result
                told = headers.get(b"retry-after", b"")
                wait = min(LONGEST_WAIT, float(told)) if told.isdigit() else wait
            if tried < TRIES - 1:
                await asyncio.sleep(wait)
        return result

    async def _request(
        self, method: str, path: str, extensions: dict[str, Any], content: bytes | None = None
    ) -> httpcore2.Response:
        """Over a connection that nobody uses."""
        if not self._idle:
            self._pools.append(
                httpcore2.AsyncConnectionPool(max_connections=1, uds=self._uds, network_backend=LoopBackend())
            )
            self._idle.append(self._pools[-1])
        pool = self._idle.pop()
        try:
            return await pool.request(
                method, self._root + path, headers=self._headers, content=content, extensions=extensions
            )
        finally:
            self._idle.append(pool)


def _body(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return raw.decode(errors="replace")


def _patience(seconds: float | None = None) -> dict[str, Any]:
    """An answer may take as long as it takes."""
    return {"timeout": {"connect": CONNECT_SECONDS, "read": seconds, "write": 60.0, "pool": None}}
