"""The ASGI application in front of several models: what it answers itself, and what it passes on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llamafast.api.body_size import BODIES_AT_ONCE, BodyLimits
from llamafast.api.client_wait import ClientWaits
from llamafast.api.http import Exchange, Receive, Scope, Send
from llamafast.api.keys import KeyRing
from llamafast.api.ollama import ollama_routes
from llamafast.api.origins import Origins
from llamafast.api.page import Page
from llamafast.api.reception import Reception
from llamafast.api.request_log import RequestLog
from llamafast.api.responses.socket import ResponseSockets, Whose, upgrade_required
from llamafast.api.responses.store import ResponseStore
from llamafast.api.responses.stored import PATH as RESPONSES
from llamafast.api.responses.stored import StoredResponses
from llamafast.api.routes import (
    CHAT,
    HEALTH,
    MODELS,
    RENDER_CHAT,
    RENDER_COMPLETION,
    RERANK,
    RESPONSES_POST,
    TRANSCRIPTIONS,
    TRANSLATIONS,
    Route,
    Routes,
    get,
)
from llamafast.api.spans import SpanSink
from llamafast.api.sse import PING_SECONDS
from llamafast.api.system import reply_live, reply_version
from llamafast.api.websocket import WebSocket
from llamafast.config import PoolConfig
from llamafast.pool.catalogue import Catalogue
from llamafast.pool.events import Events
from llamafast.pool.fleet import Fleet
from llamafast.pool.proxy import ADAPTERS, Proxy
from llamafast.pool.sockets import PooledSession
from llamafast.pool.system import PoolEndpoints

# What a model answers to whoever names it in the body.
_PROMPTED = (
    RESPONSES,
    RESPONSES_POST,
    "/v1/completions",
    *CHAT,
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/completion",
    "/completions",
    "/infill",
    f"{RESPONSES}/input_tokens",
    f"{RESPONSES}/compact",
    "/v1/embeddings",
    *RERANK,
    "/v1/score",
    "/apply-template",
    "/tokenize",
    "/detokenize",
    *RENDER_CHAT,
    RENDER_COMPLETION,
)
# And to whoever names it in a form.
_HEARD = (TRANSCRIPTIONS, TRANSLATIONS)
# Ids in a prompt, as many as the longest contexts have; what fewer may be is for the model to say.
_MAX_PROMPT = 2**20
_RETRY_SECONDS = 1.0


class PoolApp:
    """``store`` is the database of responses that all models write, ``spans`` where traces of requests go that none of
    them answers."""

    def __init__(
        self,
        fleet: Fleet,
        catalogue: Catalogue,
        events: Events,
        store: ResponseStore,
        config: PoolConfig,
        *,
        keys: KeyRing,
        origins: Origins,
        waits: ClientWaits,
        ping_seconds: float = PING_SECONDS,
        spans: SpanSink | None = None,
    ) -> None:
        self._keys = keys
        self._waits = waits
        self._events = events
        max_bytes = config.max_body_bytes
        self._limits = limits = BodyLimits(max_bytes, BODIES_AT_ONCE * max_bytes, _MAX_PROMPT)
        request_log = RequestLog(config.server, spans)
        self._system = PoolEndpoints(fleet, catalogue, config, limits)
        self._proxy = Proxy(fleet, catalogue, limits, ping_seconds, frozenset((*_PROMPTED, *_HEARD)))

        def new_session(socket: WebSocket, whose: Whose) -> PooledSession:
            return PooledSession(socket, whose, fleet, catalogue, request_log, limits=limits, config=config.server)

        self._sockets = ResponseSockets(new_session, request_log, config.server)
        self.routes = Routes([*self._passing(), *StoredResponses(store).routes(), *self._describing(config)])
        self._reception = Reception(self.routes, keys, origins, request_log, lambda: _RETRY_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._waits.of(scope) as wait:
            if scope["type"] == "http":
                exchange = Exchange(scope, receive, send, wait)
                exchange.closes = self._system.draining
                await self._reception.serve(exchange)
            else:
                socket = WebSocket(scope, receive, send, wait, self._limits.max_bytes)
                admitted, key = await self._reception.admit_socket(socket, (RESPONSES,))
                if admitted:
                    await self._sockets.serve(socket, partial(self._keys.tenant, key))

    def is_alive(self) -> bool:
        """A child that hangs is no reason to end the others: /health tells of it."""
        return True

    def announce_drain(self) -> None:
        self._system.draining = True

    def drain(self) -> None:
        self._sockets.drain()
        self._events.close()

    async def closed(self) -> None:
        await self._sockets.closed()

    def _passing(self) -> Iterator[Route]:
        for path in _PROMPTED:
            more = {"GET": upgrade_required} if path == RESPONSES else {}
            yield Route(path, {"POST": self._proxy.with_body, **more})
        for path in _HEARD:
            yield Route(path, {"POST": self._proxy.with_form})
        methods = {**get(self._proxy.without_body), "POST": self._proxy.with_body}
        yield Route("/lora-adapters", methods, changes=frozenset({"POST"}))
        for path in ("/props", "/v1/props"):
            yield Route(path, get(self._proxy.without_body))
        for path in ADAPTERS:
            yield Route(path, {"POST": self._proxy.with_body}, "admin")

    def _describing(self, config: PoolConfig) -> Iterator[Route]:
        system = self._system
        for path in MODELS:
            yield Route(path, get(system.models))
        yield Route("/v1/models/{id}", get(system.model), id_pattern=".*")
        yield Route("/slots", get(system.slots))
        yield Route("/models/load", {"POST": system.load}, "admin")
        yield Route("/models/unload", {"POST": system.unload}, "admin")
        yield Route("/models/sse", {"GET": self._events.watch}, "admin")
        for path, probe in (
            ("/live", reply_live),
            ("/ready", system.ready),
            *((path, system.ready) for path in HEALTH),
            ("/healthz", system.health),
        ):
            yield Route(path, get(probe), "open", is_probe=True)
        yield Route("/version", get(reply_version))
        yield Route("/metrics", get(system.metrics), "open" if config.server.metrics_public else "key")
        yield Route("/engine/events", {"GET": system.watch})
        if config.server.ollama_discovery:
            yield from ollama_routes(system.entries, system.show)
        yield from Page(config.server).routes()
        yield Route("/reset_prefix_cache", {"POST": system.reset_prefix_cache}, "admin")
