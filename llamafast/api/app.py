"""The ASGI application of one model: what answers at which path."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from typing import Any

from llamafast.api.adapters import AdapterEndpoints
from llamafast.api.body_size import BODIES_AT_ONCE, BodyLimits
from llamafast.api.chat.endpoint import ChatEndpoint
from llamafast.api.client_wait import ClientWaits
from llamafast.api.completions import CompletionsEndpoint
from llamafast.api.embeddings import EmbeddingsEndpoint, RerankEndpoint, ScoreEndpoint
from llamafast.api.engine_events import EngineEvents
from llamafast.api.grammars import Grammars
from llamafast.api.http import Exchange, Receive, Scope, Send
from llamafast.api.keys import KeyRing
from llamafast.api.messages.endpoint import MessagesEndpoint
from llamafast.api.messages.plan import MessagePlanner
from llamafast.api.native.endpoint import NativeEndpoint
from llamafast.api.ollama import ollama_routes
from llamafast.api.origins import Origins
from llamafast.api.page import Page
from llamafast.api.reception import Reception
from llamafast.api.render import RenderEndpoints
from llamafast.api.request_log import RequestLog
from llamafast.api.responses.endpoint import ResponsesEndpoint
from llamafast.api.responses.lanes import Session
from llamafast.api.responses.plan import ResponsePlanner
from llamafast.api.responses.responder import Responder
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
    Endpoint,
    Route,
    Routes,
    get,
)
from llamafast.api.spans import SpanSink
from llamafast.api.sse import PING_SECONDS
from llamafast.api.system import SystemEndpoints, reply_live, reply_version
from llamafast.api.tokens import TokenEndpoints
from llamafast.api.transcription.endpoint import TranscriptionEndpoint
from llamafast.api.websocket import WebSocket
from llamafast.chat.format import ChatFormat
from llamafast.chat.grammar.constraints import Constraints
from llamafast.config import Config, ModelConfig, ServerConfig
from llamafast.engine.media import MediaLoader
from llamafast.engine.types import EnginePort

BodyEndpoint = Callable[[Exchange, bytes], Coroutine[Any, Any, None]]


class App:
    """An OpenAI-compatible ASGI 3 application over one engine.

    ``keys`` and ``origins`` say who may ask, ``waits`` is of all clients that are waited for, ``ping_seconds`` how long
    a stream may be silent, ``media`` where media come from, for a model that takes some, ``spans`` where traces go.
    Raises ConfigError when the model's chat template does not compile or the store of responses does not open.
    """

    socket_paths = (RESPONSES,)

    def __init__(
        self,
        engine: EnginePort,
        config: Config,
        *,
        keys: KeyRing,
        origins: Origins,
        waits: ClientWaits,
        ping_seconds: float = PING_SECONDS,
        media: MediaLoader | None = None,
        spans: SpanSink | None = None,
    ) -> None:
        self._engine = engine
        self._keys = keys
        max_bytes = config.max_body_bytes
        self._limits = BodyLimits(max_bytes, BODIES_AT_ONCE * max_bytes, engine.info.max_seq_len)
        self._waits = waits
        request_log = RequestLog(config.server, spans)
        self.chat = chat = ChatFormat(config.model, engine.info, engine.tokenizer)
        # now, when nobody waits yet
        grammars = Grammars(Constraints(engine.tokenizer) if engine.info.generates else None)
        store = ResponseStore(config.responses)
        responder = Responder(engine, ResponsePlanner(engine, chat), grammars, store, media)

        def new_session(socket: WebSocket, whose: Whose) -> Session:
            return Session(
                socket, whose, responder, engine.info, request_log, limits=self._limits, config=config.server
            )

        self._sockets = ResponseSockets(new_session, request_log, config.server)
        self._system = SystemEndpoints(engine, config, chats=chat.has_template)
        self._engine_events = EngineEvents(engine, ping_seconds)
        self.routes = Routes([
            *self._generating(engine, chat, grammars, ping_seconds, media),
            *self._responding(ResponsesEndpoint(engine.info, responder, ping_seconds)),
            *StoredResponses(store).routes(),
            *self._embedding(engine, config.model),
            *self._reading(TokenEndpoints(engine, chat), RenderEndpoints(engine, chat)),
            *_describing(self._system, config.server),
            *self._discovering(config.server),
            Route("/engine/events", {"GET": self._engine_events.watch}),
            *Page(config.server).routes(),
            *self._adapting(AdapterEndpoints(engine, config.server.lora_dir)),
        ])  # fmt: skip
        self._reception = Reception(self.routes, keys, origins, request_log, engine.retry_after)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._waits.of(scope) as wait:
            if scope["type"] == "http":
                await self._serve(Exchange(scope, receive, send, wait))
            else:
                await self._converse(WebSocket(scope, receive, send, wait, self._limits.max_bytes))

    def is_alive(self) -> bool:
        return self._system.seconds_stalled == 0

    def announce_drain(self) -> None:
        """/ready and /health turn red, so that new requests go elsewhere; all that come are served as before."""
        self._system.draining = True

    def drain(self) -> None:
        """Close every WebSocket when what runs on it is done; requests over HTTP end by themselves, but for those that
        watch the engine."""
        self._sockets.drain()
        self._engine_events.close()

    async def closed(self) -> None:
        """Until no WebSocket is open."""
        await self._sockets.closed()

    async def _serve(self, exchange: Exchange) -> None:
        exchange.closes = self._system.draining
        await self._reception.serve(exchange)

    async def _converse(self, socket: WebSocket) -> None:
        admitted, key = await self._reception.admit_socket(socket, self.socket_paths)
        if admitted:
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
        for path in CHAT:
            yield self._post(path, ChatEndpoint(engine, chat, grammars, ping_seconds, media))
        messages = MessagesEndpoint(engine, MessagePlanner(engine, chat, media), grammars, ping_seconds)
        yield self._post("/v1/messages", messages.create)
        yield self._post("/v1/messages/count_tokens", messages.count_tokens)
        native = NativeEndpoint(engine, grammars, ping_seconds)
        for path in ("/completion", "/completions"):
            yield self._post(path, native.completion)
        yield self._post("/infill", native.infill)
        for path, translates in ((TRANSCRIPTIONS, False), (TRANSLATIONS, True)):
            hears = TranscriptionEndpoint(engine, chat, ping_seconds, media, translates=translates)
            yield Route(path, {"POST": self._with_form(hears)})

    def _responding(self, responses: ResponsesEndpoint) -> Iterator[Route]:
        create = {"POST": self._with_body(responses.create), "GET": upgrade_required}
        yield Route(RESPONSES, create)
        yield self._post(RESPONSES_POST, responses.create)
        yield self._post(f"{RESPONSES}/input_tokens", responses.input_tokens)
        yield self._post(f"{RESPONSES}/compact", responses.compact)

    def _embedding(self, engine: EnginePort, config: ModelConfig) -> Iterator[Route]:
        yield self._post("/v1/embeddings", EmbeddingsEndpoint(engine))
        for path in RERANK:
            yield self._post(path, RerankEndpoint(engine, config))
        yield self._post("/v1/score", ScoreEndpoint(engine, config))

    def _adapting(self, adapters: AdapterEndpoints) -> Iterator[Route]:
        methods = {**get(adapters.listed), "POST": self._with_body(adapters.apply)}
        yield Route("/lora-adapters", methods, changes=frozenset({"POST"}))
        yield Route("/v1/load_lora_adapter", {"POST": self._with_body(adapters.load)}, "admin")
        yield Route("/v1/unload_lora_adapter", {"POST": self._with_body(adapters.unload)}, "admin")

    def _discovering(self, config: ServerConfig) -> Iterable[Route]:
        system = self._system
        return ollama_routes(system.entries, self._with_body(system.show)) if config.ollama_discovery else ()

    def _reading(self, tokens: TokenEndpoints, render: RenderEndpoints) -> Iterator[Route]:
        yield self._post("/apply-template", tokens.apply_template)
        yield self._post("/tokenize", tokens.tokenize)
        yield self._post("/detokenize", tokens.detokenize)
        for path in RENDER_CHAT:
            yield self._post(path, render.chat)
        yield self._post(RENDER_COMPLETION, render.completion)

    def _post(self, path: str, endpoint: BodyEndpoint) -> Route:
        return Route(path, {"POST": self._with_body(endpoint)})

    def _with_body(self, endpoint: BodyEndpoint) -> Endpoint:
        async def answer(exchange: Exchange) -> None:
            body = await exchange.read_json(self._limits)
            await exchange.until_disconnect(endpoint(exchange, body))

        return answer

    def _with_form(self, endpoint: BodyEndpoint) -> Endpoint:
        async def answer(exchange: Exchange) -> None:
            # nobody but the endpoint holds the body, which may let go of it
            await exchange.until_disconnect(endpoint(exchange, await exchange.read_form(self._limits)))

        return answer


def _describing(system: SystemEndpoints, config: ServerConfig) -> Iterator[Route]:
    """What the server tells of itself, and what changes it."""
    for path in MODELS:
        yield Route(path, get(system.models))
    yield Route("/v1/models/{id}", get(system.model), id_pattern=".*")
    for path in ("/props", "/v1/props"):
        yield Route(path, get(system.props))
    yield Route("/slots", get(system.slots))
    for path, probe in (
        ("/live", reply_live),
        ("/ready", system.ready),
        *((path, system.ready) for path in HEALTH),
        ("/healthz", system.health),
    ):
        yield Route(path, get(probe), "open", is_probe=True)
    yield Route("/version", get(reply_version))
    yield Route("/metrics", get(system.metrics), "open" if config.metrics_public else "key")
    yield Route("/reset_prefix_cache", {"POST": system.reset_prefix_cache}, "admin")
