"""The ASGI application: route, run, and turn every error into OpenAI's."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Any

from llamafast.api.body_size import BodyLimits
from llamafast.api.chat import ChatEndpoint
from llamafast.api.completions import CompletionsEndpoint
from llamafast.api.delivery import internal_error
from llamafast.api.embeddings import EmbeddingsEndpoint, RerankEndpoint, ScoreEndpoint
from llamafast.api.grammars import Grammars
from llamafast.api.http import ClientGone, Exchange, Receive, Scope, Send
from llamafast.api.request_log import RequestLog
from llamafast.api.responder import Responder
from llamafast.api.response_plan import ResponsePlanner
from llamafast.api.response_socket import ResponseSockets
from llamafast.api.response_store import ResponseStore
from llamafast.api.responses import ResponsesEndpoint
from llamafast.api.sse import PING_SECONDS
from llamafast.api.system import SystemEndpoints, reply_live
from llamafast.api.tokens import TokenEndpoints
from llamafast.api.websocket import WebSocket
from llamafast.chat.constraint import Constraints
from llamafast.chat.format import ChatFormat
from llamafast.config import ResponsesConfig
from llamafast.engine.types import EnginePort
from llamafast.errors import LlamafastError, MethodNotAllowed, NotFound, UpgradeRequired

log = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]
BodyHandler = Callable[[Exchange, bytes], Coroutine[Any, Any, None]]

_RESPONSES = "/v1/responses"
_RERANK = ("/v1/rerank", "/v2/rerank", "/rerank")  # Jina's clients, Cohere's, vLLM's
_UPGRADE = ((b"upgrade", b"websocket"),)
_MODEL_PREFIX = "/v1/models/"
_MODEL_ROUTE = "/v1/models/{id}"
_NO_ROUTE = "other"
_CLIENT_GONE_STATUS = 499
_FORBIDDEN_STATUS = 403
# Bodies of the largest size that may be here at once.
BODIES_AT_ONCE = 8


class App:
    """An OpenAI-compatible ASGI 3 application over one engine.

    ``max_body_bytes`` bounds a request's body, ``stall_seconds`` is how long the engine may stand still over waiting
    work before /ready and /healthz turn red, ``ping_seconds`` how long a stream may be silent. ``request_log`` writes a
    line per request, ``metrics_aliases`` repeats metrics under other servers' names (``metrics.ALIASES``). Paths are
    exact: with a trailing slash it is another URL. ``max_websockets`` are open at once, each for ``websocket_seconds``.
    Raises ConfigError when the model's chat template does not compile or the store of ``responses`` does not open.
    """

    def __init__(
        self,
        engine: EnginePort,
        *,
        max_body_bytes: int,
        stall_seconds: float,
        ping_seconds: float = PING_SECONDS,
        request_log: bool = True,
        metrics_aliases: Collection[str] = (),
        max_websockets: int = 1024,
        websocket_seconds: float = 3600.0,
        responses: ResponsesConfig = ResponsesConfig(),  # noqa: B008
    ) -> None:
        self._limits = BodyLimits(max_body_bytes, BODIES_AT_ONCE * max_body_bytes, engine.info.max_seq_len)
        self._request_log = RequestLog(lines=request_log)
        self._system = system = SystemEndpoints(engine, stall_seconds, metrics_aliases)
        self.chat = chat = ChatFormat(engine.info, engine.tokenizer)
        tokens = TokenEndpoints(engine, chat)
        # now, when nobody waits yet
        grammars = Grammars(Constraints(engine.tokenizer) if engine.info.generates else None)
        store = ResponseStore(responses)
        responder = Responder(engine, ResponsePlanner(engine, chat), grammars, store)
        self._responses = ResponsesEndpoint(engine.info, responder, store, ping_seconds)
        self._sockets = ResponseSockets(
            responder,
            engine.info,
            self._request_log,
            max_sockets=max_websockets,
            max_seconds=websocket_seconds,
            limits=self._limits,
        )
        self._routes: dict[str, Mapping[str, Handler]] = {
            "/v1/completions": {"POST": self._with_body(CompletionsEndpoint(engine, grammars, ping_seconds))},
            "/v1/chat/completions": {"POST": self._with_body(ChatEndpoint(engine, chat, grammars, ping_seconds))},
            "/v1/embeddings": {"POST": self._with_body(EmbeddingsEndpoint(engine))},
            **{path: {"POST": self._with_body(RerankEndpoint(engine))} for path in _RERANK},
            "/v1/score": {"POST": self._with_body(ScoreEndpoint(engine))},
            "/apply-template": {"POST": self._with_body(tokens.apply_template)},
            "/tokenize": {"POST": self._with_body(tokens.tokenize)},
            "/detokenize": {"POST": self._with_body(tokens.detokenize)},
            _RESPONSES: {"POST": self._with_body(self._responses.create), "GET": _upgrade_required},
            "/v1/responses/input_tokens": {"POST": self._with_body(self._responses.input_tokens)},
            "/v1/responses/compact": {"POST": self._with_body(self._responses.compact)},
            "/v1/models": _get(system.models),
            "/live": _get(reply_live),
            "/ready": _get(system.ready),
            "/health": _get(system.ready),
            "/healthz": _get(system.health),
            "/metrics": _get(system.metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send))
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            socket = WebSocket(scope, receive, send, self._limits.max_bytes)
            await (self._sockets.serve(socket) if socket.path == _RESPONSES else self._reject(socket))

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
            name, methods = self._route(exchange.path)
            await _dispatch(exchange, methods)
        except ClientGone:
            exchange.status = exchange.status or _CLIENT_GONE_STATUS
        except LlamafastError as error:
            await _fail(exchange, error)
        except Exception:
            request_id = exchange.identity.request_id.decode()
            log.exception("request %s failed: %s %r", request_id, exchange.method, exchange.path)
            await _fail(exchange, internal_error())
        finally:
            exchange.release()
            self._request_log.add(exchange, name)

    async def _reject(self, socket: WebSocket) -> None:
        record = socket.record()
        record.status = _FORBIDDEN_STATUS
        await socket.reject()
        self._request_log.add(record, _NO_ROUTE)

    def _route(self, path: str) -> tuple[str, Mapping[str, Handler]]:
        """The name of ``path`` in the metrics and its methods. The path is percent-decoded: ids may hold slashes."""
        if methods := self._routes.get(path):
            return path, methods
        if path.startswith(_MODEL_PREFIX):
            return _MODEL_ROUTE, _get(partial(self._system.model, model_id=path.removeprefix(_MODEL_PREFIX)))
        if path.startswith(f"{_RESPONSES}/"):
            return self._response_route(path.removeprefix(f"{_RESPONSES}/"))
        raise NotFound(f"there is nothing at {path[:256]!r}")

    def _response_route(self, path: str) -> tuple[str, Mapping[str, Handler]]:
        response_id, _, what = path.partition("/")
        endpoints = self._responses
        routes: dict[str, Mapping[str, Handler]] = {
            "": {
                **_get(partial(endpoints.retrieve, response_id=response_id)),
                "DELETE": partial(endpoints.delete, response_id=response_id),
            },
            "input_items": _get(partial(endpoints.input_items, response_id=response_id)),
            "cancel": {"POST": partial(endpoints.cancel, response_id=response_id)},
        }
        methods = routes.get(what)
        if methods is None:
            raise NotFound(f"there is nothing at {path[:256]!r} below {_RESPONSES!r}")
        return "/".join([_RESPONSES, "{id}", *([what] if what else [])]), methods

    def _with_body(self, endpoint: BodyHandler) -> Handler:
        async def handler(exchange: Exchange) -> None:
            body = await exchange.read_json(self._limits)
            await exchange.until_disconnect(endpoint(exchange, body))

        return handler


def _get(handler: Handler) -> Mapping[str, Handler]:
    return {"GET": handler, "HEAD": handler}


async def _upgrade_required(exchange: Exchange) -> None:
    """A GET that reaches HTTP: an upgrade where WebSockets are off, or none at all."""
    await exchange.reply_error(UpgradeRequired("send POST, or open a WebSocket where they are on"), _UPGRADE)


async def _dispatch(exchange: Exchange, methods: Mapping[str, Handler]) -> None:
    handler = methods.get(exchange.method)
    if handler is not None:
        await handler(exchange)
        return
    allow = ", ".join([*methods, "OPTIONS"])
    if exchange.method == "OPTIONS":
        await exchange.reply_options(allow)
        return
    error = MethodNotAllowed(f"{exchange.path[:256]!r} takes {allow}, not {exchange.method[:32]!r}")
    await exchange.reply_error(error, ((b"allow", allow.encode()),))


async def _fail(exchange: Exchange, error: LlamafastError) -> None:
    """Answer with ``error``, unless the reply has begun: then only its bare end can tell."""
    if not exchange.status:
        await exchange.reply_error(error)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
