"""What answers until the application is there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from llamafast.api.client_wait import ClientWaits
from llamafast.api.http import ClientGone, Exchange, Receive, Scope, Send
from llamafast.api.messages.errors import form_of
from llamafast.api.page import Page
from llamafast.api.request_log import RequestLog
from llamafast.api.routes import HEALTH, Route, Routes, dispatch
from llamafast.api.system import reply_live, reply_not_ready
from llamafast.api.websocket import TRY_AGAIN_LATER, WebSocket
from llamafast.config import ServerConfig
from llamafast.errors import EngineUnavailable, NotFound

Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_LIVE = "/live"
_READY = ("/ready", *HEALTH, "/healthz")
_LOADING = "the model is loading"
_NO_ROUTE = "other"


class Gate:
    """The ASGI application of a server whose model loads: it tells probes so and refuses all else, until it is opened
    and everything goes to the application behind it. The page is there already: it says that the model loads.

    Probes leave no trace in the log and the metrics, as they come again and again.
    """

    def __init__(self, waits: ClientWaits, config: ServerConfig) -> None:
        self._waits = waits
        self._log = RequestLog(config)
        self._page = Routes(Page(config).routes())
        self._application: Application = self._refuse

    def open(self, application: Application) -> None:
        """From now on ``application`` answers."""
        self._application = application

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._application(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._waits.of(scope) as wait:
            if scope["type"] == "http":
                await self._answer(Exchange(scope, receive, send, wait))
            else:
                await self._turn_away(WebSocket(scope, receive, send, wait, max_frame_bytes=0))

    async def _answer(self, exchange: Exchange) -> None:
        exchange.form = form_of(exchange.path, exchange.headers)
        path = exchange.path if exchange.method in ("GET", "HEAD") else ""
        if path == _LIVE:
            await reply_live(exchange)
        elif path in _READY:
            await reply_not_ready(exchange, "loading")
        elif (found := self._page.find(path)) is not None:
            await self._show(exchange, *found)
        else:
            await exchange.reply_error(EngineUnavailable(_LOADING))
            self._log.add(exchange, _NO_ROUTE)

    async def _show(self, exchange: Exchange, route: Route, ids: tuple[str, ...]) -> None:
        try:
            await dispatch(route, ids, exchange)
        except NotFound as error:
            await exchange.reply_error(error)
        self._log.add(exchange, route.path)

    async def _turn_away(self, socket: WebSocket) -> None:
        record = socket.record()
        record.status, record.error = EngineUnavailable.status, EngineUnavailable(_LOADING)
        with suppress(ClientGone):
            await socket.accept()
            await socket.close(TRY_AGAIN_LATER, _LOADING)
        self._log.add(record, _NO_ROUTE)
