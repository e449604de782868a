"""One server, and requests to it that are tried again while that may help."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import msgspec

from llamafast.batch.lines import Fault, Request, Response, Result
from llamafast.errors import ConfigError

# Told to come back later: the queue is full, or the server loads or stops; in Anthropic's words the last.
_LATER = frozenset({429, 503, 529})
# What is raised where nobody answers.
NOBODY = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)
TRIES = 8
LONGEST_WAIT = 60.0
CONNECT_SECONDS = 10.0


class Client:
    """``url`` is a server's address, with or without /v1; with ``uds`` it listens on that Unix socket. Raises
    ConfigError for an address that is none."""

    def __init__(self, url: str, key: str = "", *, uds: str | None = None, n_connections: int = 1) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url}: is no address of a server, such as http://127.0.0.1:8000")
        self._base = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._headers = [(b"content-type", b"application/json")]
        if key:
            self._headers.append((b"authorization", b"Bearer " + key.encode()))
        self._pool = httpcore2.AsyncConnectionPool(max_connections=n_connections, uds=uds)

    async def close(self) -> None:
        await self._pool.aclose()

    async def get(self, path: str) -> Any:
        """JSON; None where there is none. Raises NOBODY where nobody answers."""
        response = await self._pool.request("GET", self._base + path, headers=self._headers, extensions=_patience(10.0))
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
                response = await self._pool.request(
                    "POST",
                    self._base + request.url,
                    headers=self._headers,
                    content=request.body,
                    extensions=_patience(),
                )
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


def _body(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return raw.decode(errors="replace")


def _patience(seconds: float | None = None) -> dict[str, Any]:
    """An answer may take as long as it takes."""
    return {"timeout": {"connect": CONNECT_SECONDS, "read": seconds, "write": 60.0, "pool": None}}
