"""Where requests come in: who may ask, what answers, and every error as the client's API has it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial

from llamafast.api.http import ClientGone, Exchange, Headers
from llamafast.api.keys import Key, KeyRing
from llamafast.api.messages.errors import form_of
from llamafast.api.ollama import PATHS as OLLAMA_PATHS
from llamafast.api.origins import Origins
from llamafast.api.record import Identity
from llamafast.api.request_log import RequestLog
from llamafast.api.routes import Route, Routes, dispatch
from llamafast.api.websocket import WebSocket
from llamafast.errors import (
    InvalidKey,
    LlamafastError,
    NotFound,
    PermissionDenied,
    QueueFull,
    QueueTimeout,
    internal_error,
)

log = logging.getLogger(__name__)

_CHALLENGE: Headers = ((b"www-authenticate", b"Bearer"),)
_NO_ROUTE = "other"
_CLIENT_GONE_STATUS = 499
_BATCHES = ("/v1/batches", "/v1/files", "/v1/messages/batches")


class Reception:
    """``retry_after`` says in how many seconds who found a queue full should try again."""

    def __init__(
        self,
        routes: Routes,
        keys: KeyRing,
        origins: Origins,
        request_log: RequestLog,
        retry_after: Callable[[], float],
    ) -> None:
        self.routes = routes
        self._keys = keys
        self._origins = origins
        self._request_log = request_log
        self._retry_after = retry_after

    async def serve(self, exchange: Exchange) -> None:
        """Answer a request over HTTP, and tell of it."""
        name = _NO_ROUTE
        try:
            exchange.form = form_of(exchange.path, exchange.headers)
            found = self.routes.find(exchange.path)
            if found is not None:
                name = found[0].path
                exchange.form = found[0].form or exchange.form
            self._admit(exchange, found and found[0])
            if found is None:
                exchange.nothing_at = exchange.path
                raise NotFound(f"there is nothing at {exchange.path[:256]!r}{self._instead(exchange.path)}")
            await dispatch(*found, exchange)
        except ClientGone:
            exchange.left = True
            exchange.status = exchange.status or _CLIENT_GONE_STATUS
        except LlamafastError as error:
            if isinstance(error, (QueueFull, QueueTimeout)):
                error.retry_after = self._retry_after()
            await _fail(exchange, error)
        except Exception:
            request_id = exchange.identity.request_id.decode()
            log.exception("request %s failed: %s %r", request_id, exchange.method, exchange.path)
            await _fail(exchange, internal_error())
        finally:
            exchange.release()
            if exchange.abandoned:
                exchange.left = True
                exchange.status = _CLIENT_GONE_STATUS
            if not exchange.passed_on:
                self._request_log.add(exchange, name)

    async def admit_socket(self, socket: WebSocket, paths: Collection[str]) -> tuple[bool, Key | None]:
        """Whether a WebSocket to one of ``paths`` may be opened, and whose it is; it is rejected otherwise."""
        try:
            self._origins.check(socket.headers)
            key = self._keys.authenticate(socket.headers)
            socket.identity = _told(socket.identity, key)
            if socket.path not in paths:
                raise PermissionDenied(f"there is no WebSocket at {socket.path[:256]!r}")
        except LlamafastError as error:
            record = socket.record()
            record.status, record.error = error.status, error
            record.nothing_at = "" if socket.path in paths else socket.path
            await socket.reject(error)
            self._request_log.add(record, _NO_ROUTE)
            return False, None
        return True, key

    def _instead(self, path: str) -> str:
        """What to use for what is kept at OpenAI or Anthropic, or may have been meant."""
        if any(path == each or path.startswith(f"{each}/") for each in _BATCHES):
            return ": the command `llamafast batch` answers the requests of a file"
        off = ": `server.ollama_discovery` in the server's config turns it on" if path in OLLAMA_PATHS else ""
        near = self.routes.near(path)
        return f"{off}; there is {', '.join(near)}" if near else off

    def _admit(self, exchange: Exchange, route: Route | None) -> None:
        """Find out whose request it is. Raises InvalidKey or PermissionDenied.

        Who has no key does not learn which paths there are, but by OPTIONS: so a browser asks, without a key, what its
        page may send.
        """
        exchange.read_in_front = self._keys.read_in_front
        access = "key" if route is None else route.access
        exchange.origin_headers = self._origins.reply_headers(exchange.headers)
        # probes come to an address, whatever the server is called
        self._origins.check(exchange.headers, any_host=route is not None and route.is_probe)
        if access == "open" or exchange.method == "OPTIONS":
            return
        key = self._keys.authenticate(exchange.headers)
        exchange.identity = _told(exchange.identity, key)
        exchange.tenant = self._keys.tenant(key)
        exchange.recheck = partial(self._keys.tenant, key)
        exchange.is_admin = key is not None and key.admin
        if access == "admin" or (route is not None and exchange.method in route.changes):
            self._keys.require_admin(key)


def _told(identity: Identity, key: Key | None) -> Identity:
    """With whoever asks behind a parent, which has told that."""
    return identity._replace(peer=key.peer) if key is not None and key.peer else identity


async def _fail(exchange: Exchange, error: LlamafastError) -> None:
    """Answer with ``error``, unless the reply has begun: then only its bare end can tell."""
    exchange.error = error
    if not exchange.status:
        await exchange.reply_error(error, _CHALLENGE if isinstance(error, InvalidKey) else ())
