"""The ASGI application: route, run, and turn every error into what the client's API has for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

from llamafast.api.adapters import AdapterEndpoints
from llamafast.api.body_size import BodyLimits
from llamafast.api.chat.endpoint import ChatEndpoint
from llamafast.api.client_wait import ClientWaits
from llamafast.api.completions import CompletionsEndpoint
from llamafast.api.delivery import internal_error
from llamafast.api.embeddings import EmbeddingsEndpoint, RerankEndpoint, ScoreEndpoint
from llamafast.api.grammars import Grammars
from llamafast.api.http import ClientGone, Exchange, Headers, Receive, Scope, Send
from llamafast.api.keys import Keys
from llamafast.api.messages.endpoint import MessagesEndpoint
from llamafast.api.messages.errors import form_of
from llamafast.api.messages.plan import MessagePlanner
from llamafast.api.native.endpoint import NativeEndpoint
from llamafast.api.origins import Origins
from llamafast.api.request_log import RequestLog
from llamafast.api.responses.endpoint import ResponsesEndpoint
from llamafast.api.responses.plan import ResponsePlanner
from llamafast.api.responses.responder import Responder
from llamafast.api.responses.socket import ResponseSockets
from llamafast.api.responses.store import ResponseStore
from llamafast.api.routes import Handler, Route, Routes, dispatch, get
from llamafast.api.sse import PING_SECONDS
from llamafast.api.system import SystemEndpoints, reply_live
from llamafast.api.tokens import TokenEndpoints
from llamafast.api.websocket import WebSocket
from llamafast.chat.format import ChatFormat
from llamafast.chat.grammar.constraints import Constraints
from llamafast.config import Config, ModelConfig, ServerConfig
from llamafast.engine.media import MediaLoader
from llamafast.engine.types import EnginePort
from llamafast.errors import (
    InvalidKey,
    LlamafastError,
    NotFound,
    PermissionDenied,
    QueueFull,
    QueueTimeout,
    UpgradeRequired,
)

log = logging.getLogger(__name__)

BodyHandler = Callable[[Exchange, bytes], Coroutine[Any, Any, None]]

_RESPONSES = "/v1/responses"
_RERANK = ("/v1/rerank", "/v2/rerank", "/rerank")  # Jina's clients, Cohere's, vLLM's
_UPGRADE: Headers = ((b"upgrade", b"websocket"),)
_CHALLENGE: Headers = ((b"www-authenticate", b"Bearer"),)
_NO_ROUTE = "other"
_CLIENT_GONE_STATUS = 499
# Bodies of the largest size that may be here at once.
BODIES_AT_ONCE = 8


class App:
    """An OpenAI-compatible ASGI 3 application over one engine.

    ``keys`` and ``origins`` say who may ask, ``waits`` is of all clients that are waited for, ``ping_seconds`` how long
    a stream may be silent, ``media`` where media come from, for a model that takes some. Raises ConfigError when the
    model's chat template does not compile or the store of responses does not open.
    """

    socket_paths = (_RESPONSES,)

    def __init__(
        self,
        engine: EnginePort,
        config: Config,
        *,
        keys: Keys,
        origins: Origins,
        waits: ClientWaits,
        ping_seconds: float = PING_SECONDS,
        media: MediaLoader | None = None,
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._origins = origins
        max_bytes = config.max_body_bytes
        self._limits = BodyLimits(max_bytes, BODIES_AT_ONCE * max_bytes, engine.info.max_seq_len)
        self._waits = waits
        self._request_log = RequestLog(config.server)
        self.chat = chat = ChatFormat(config.model, engine.info, engine.tokenizer)
        # now, when nobody waits yet
        grammars = Grammars(Constraints(engine.tokenizer) if engine.info.generates else None)
        store = ResponseStore(config.responses)
        responder = Responder(engine, ResponsePlanner(engine, chat), grammars, store, media)
        self._sockets = ResponseSockets(responder, engine.info, self._request_log, self._limits, config.server)
        self._system = SystemEndpoints(engine, config)
        self.routes = Routes([
            *self._generating(engine, chat, grammars, ping_seconds, media),
            *self._responding(ResponsesEndpoint(engine.info, responder, store, ping_seconds)),
            *self._embedding(engine, config.model),
            *self._reading(TokenEndpoints(engine, chat)),
            *_describing(self._system, config.server),
            *self._adapting(AdapterEndpoints(engine, config.server.lora_dir)),
        ])  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._waits.of(scope) as wait:
            if scope["type"] == "http":
                await self._serve(Exchange(scope, receive, send, wait))
            else:
                await self._converse(WebSocket(scope, receive, send, wait, self._limits.max_bytes))

    def announce_drain(self) -> None:
        """/ready and /health turn red, so that new requests go elsewhere; all that come are served as before."""
        self._system.draining = True

    def drain(self) -> None:
        """Close every WebSocket when what runs on it is done; requests over HTTP end by themselves."""
        self._sockets.drain()

    async def closed(self) -> None:
        """Until no WebSocket is open."""
        await self._sockets.closed()

    async def _serve(self, exchange: Exchange) -> None:
        name = _NO_ROUTE
        try:
            exchange.closes = self._system.draining
            exchange.form = form_of(exchange.path, exchange.headers)
            found = self.routes.find(exchange.path)
            if found is not None:
                name = found[0].path
            self._admit(exchange, found and found[0])
            if found is None:
                raise NotFound(f"there is nothing at {exchange.path[:256]!r}")
            await dispatch(*found, exchange)
        except ClientGone:
            exchange.status = exchange.status or _CLIENT_GONE_STATUS
        except LlamafastError as error:
            if isinstance(error, (QueueFull, QueueTimeout)):
                error.retry_after = self._engine.retry_after()
            await _fail(exchange, error)
        except Exception:
            request_id = exchange.identity.request_id.decode()
            log.exception("request %s failed: %s %r", request_id, exchange.method, exchange.path)
            await _fail(exchange, internal_error())
        finally:
            exchange.release()
            if exchange.abandoned:
                exchange.status = _CLIENT_GONE_STATUS
            self._request_log.add(exchange, name)

    def _admit(self, exchange: Exchange, route: Route | None) -> None:
        """Find out whose request it is. Raises InvalidKey or PermissionDenied.

        Who has no key does not learn which paths there are, but by OPTIONS: so a browser asks, without a key, what its
        page may send.
        """
        access = "key" if route is None else route.access
        exchange.origin_headers = self._origins.reply_headers(exchange.headers)
        # probes come to an address, whatever the server is called
        self._origins.check(exchange.headers, any_host=route is not None and route.is_probe)
        if access == "open" or exchange.method == "OPTIONS":
            return
        key = self._keys.authenticate(exchange.headers)
        exchange.tenant = self._keys.tenant(key)
        if access == "admin" or (route is not None and exchange.method in route.changes):
            self._keys.require_admin(key)

    async def _converse(self, socket: WebSocket) -> None:
        try:
            self._origins.check(socket.headers)
            key = self._keys.authenticate(socket.headers)
            if socket.path not in self.socket_paths:
                raise PermissionDenied(f"there is no WebSocket at {socket.path[:256]!r}")
        except LlamafastError as error:
            record = socket.record()
            record.status = error.status
            await socket.reject(error)
            self._request_log.add(record, _NO_ROUTE)
        else:
            await self._sockets.serve(socket, partial(self._keys.tenant, key))

    def _generating(
        self,
        engine: EnginePort,
        chat: ChatFormat,
        grammars: Grammars,
        ping_seconds: float,
        media: MediaLoader | None,
    ) -> Iterator[Route]:
        yield self._post("/v1/completions", CompletionsEndpoint(engine, grammars, ping_seconds))
        yield self._post("/v1/chat/completions", ChatEndpoint(engine, chat, grammars, ping_seconds, media))
        messages = MessagesEndpoint(engine, MessagePlanner(engine, chat, media), grammars, ping_seconds)
        yield self._post("/v1/messages", messages.create)
        yield self._post("/v1/messages/count_tokens", messages.count_tokens)
        native = NativeEndpoint(engine, grammars, ping_seconds)
        for path in ("/completion", "/completions"):
            yield self._post(path, native.completion)
        yield self._post("/infill", native.infill)

    def _responding(self, responses: ResponsesEndpoint) -> Iterator[Route]:
        create = {"POST": self._with_body(responses.create), "GET": _upgrade_required}
        yield Route(_RESPONSES, create)
        yield self._post(f"{_RESPONSES}/input_tokens", responses.input_tokens)
        yield self._post(f"{_RESPONSES}/compact", responses.compact)
        yield Route(f"{_RESPONSES}/{{id}}", {**get(responses.retrieve), "DELETE": responses.delete})
        yield Route(f"{_RESPONSES}/{{id}}/input_items", get(responses.input_items))
        yield Route(f"{_RESPONSES}/{{id}}/cancel", {"POST": responses.cancel})

    def _embedding(self, engine: EnginePort, config: ModelConfig) -> Iterator[Route]:
        yield self._post("/v1/embeddings", EmbeddingsEndpoint(engine))
        for path in _RERANK:
            yield self._post(path, RerankEndpoint(engine, config))
        yield self._post("/v1/score", ScoreEndpoint(engine, config))

    def _adapting(self, adapters: AdapterEndpoints) -> Iterator[Route]:
        methods = {**get(adapters.listed), "POST": self._with_body(adapters.apply)}
        yield Route("/lora-adapters", methods, changes=frozenset({"POST"}))
        yield Route("/v1/load_lora_adapter", {"POST": self._with_body(adapters.load)}, "admin")
        yield Route("/v1/unload_lora_adapter", {"POST": self._with_body(adapters.unload)}, "admin")

    def _reading(self, tokens: TokenEndpoints) -> Iterator[Route]:
        yield self._post("/apply-template", tokens.apply_template)
        yield self._post("/tokenize", tokens.tokenize)
        yield self._post("/detokenize", tokens.detokenize)

    def _post(self, path: str, endpoint: BodyHandler) -> Route:
        return Route(path, {"POST": self._with_body(endpoint)})

    def _with_body(self, endpoint: BodyHandler) -> Handler:
        async def handler(exchange: Exchange) -> None:
            body = await exchange.read_json(self._limits)
            await exchange.until_disconnect(endpoint(exchange, body))

        return handler


def _describing(system: SystemEndpoints, config: ServerConfig) -> Iterator[Route]:
    """What the server tells of itself, and what changes it."""
    yield Route("/v1/models", get(system.models))
    yield Route("/v1/models/{id}", get(system.model), id_pattern=".*")
    for path in ("/props", "/v1/props"):
        yield Route(path, get(system.props))
    for path, probe in (
        ("/live", reply_live),
        ("/ready", system.ready),
        ("/health", system.ready),
        ("/healthz", system.health),
    ):
        yield Route(path, get(probe), "open", is_probe=True)
    yield Route("/metrics", get(system.metrics), "open" if config.metrics_public else "key")
    yield Route("/reset_prefix_cache", {"POST": system.reset_prefix_cache}, "admin")


async def _upgrade_required(exchange: Exchange) -> None:
    """A GET that reaches HTTP: an upgrade where WebSockets are off, or none at all."""
    await exchange.reply_error(UpgradeRequired("send POST, or open a WebSocket where they are on"), _UPGRADE)


async def _fail(exchange: Exchange, error: LlamafastError) -> None:
    """Answer with ``error``, unless the reply has begun: then only its bare end can tell."""
    if not exchange.status:
        await exchange.reply_error(error, _CHALLENGE if isinstance(error, InvalidKey) else ())
