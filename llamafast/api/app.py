"""The ASGI application: route, run, and turn every error into OpenAI's."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from functools import partial
from typing import Any

from llamafast import metrics
from llamafast.api.chat import ChatEndpoint
from llamafast.api.completions import CompletionsEndpoint
from llamafast.api.delivery import internal_error
from llamafast.api.embeddings import EmbeddingsEndpoint, RerankEndpoint, ScoreEndpoint
from llamafast.api.http import ClientGone, Exchange, Receive, Scope, Send
from llamafast.api.request_log import log_request
from llamafast.api.sse import PING_SECONDS
from llamafast.api.system import SystemEndpoints
from llamafast.api.tokens import TokenEndpoints
from llamafast.chat.constraint import Constraints
from llamafast.chat.format import ChatFormat
from llamafast.engine.types import EnginePort
from llamafast.errors import LlamafastError, MethodNotAllowed, NotFound

log = logging.getLogger(__name__)

Handler = Callable[[Exchange], Awaitable[None]]
BodyHandler = Callable[[Exchange, bytes], Coroutine[Any, Any, None]]

_MODEL_PREFIX = "/v1/models/"
_MODEL_ROUTE = "/v1/models/{id}"
_NO_ROUTE = "other"
_CLIENT_GONE_STATUS = 499


class App:
    """An OpenAI-compatible ASGI 3 application over one engine.

    ``max_body_bytes`` bounds a request's body, ``stall_seconds`` is how long the engine may stand still over waiting
    work before /healthz turns red, ``ping_seconds`` how long a stream may be silent. ``request_log`` writes a line per
    request, ``metrics_aliases`` repeats metrics under other servers' names (``metrics.ALIASES``). Paths are exact: with
    a trailing slash it is another URL. Raises ConfigError when the model's chat template does not compile.
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
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._request_log = request_log
        self._system = system = SystemEndpoints(engine, stall_seconds, metrics_aliases)
        chat = ChatFormat(engine.info)
        tokens = TokenEndpoints(engine, chat)
        constraints = Constraints(engine.tokenizer)
        self._routes: dict[str, Mapping[str, Handler]] = {
            "/v1/completions": {"POST": self._with_body(CompletionsEndpoint(engine, constraints, ping_seconds))},
            "/v1/chat/completions": {"POST": self._with_body(ChatEndpoint(engine, chat, constraints, ping_seconds))},
            "/v1/embeddings": {"POST": self._with_body(EmbeddingsEndpoint(engine))},
            "/v1/rerank": {"POST": self._with_body(RerankEndpoint(engine))},
            "/rerank": {"POST": self._with_body(RerankEndpoint(engine))},
            "/v1/score": {"POST": self._with_body(ScoreEndpoint(engine))},
            "/apply-template": {"POST": self._with_body(tokens.apply_template)},
            "/tokenize": {"POST": self._with_body(tokens.tokenize)},
            "/detokenize": {"POST": self._with_body(tokens.detokenize)},
            "/v1/models": _get(system.models),
            "/healthz": _get(system.health),
            "/health": _get(system.health),
            "/metrics": _get(system.metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send))
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

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
            log.exception("request %s failed: %s %r", exchange.request_id.decode(), exchange.method, exchange.path)
            await _fail(exchange, internal_error())
        finally:
            metrics.observe_http(name, exchange.status)
            if self._request_log:
                log_request(exchange, name)

    def _route(self, path: str) -> tuple[str, Mapping[str, Handler]]:
        """The name of ``path`` in the metrics and its methods. The path is percent-decoded: ids may hold slashes."""
        if methods := self._routes.get(path):
            return path, methods
        if path.startswith(_MODEL_PREFIX):
            return _MODEL_ROUTE, _get(partial(self._system.model, model_id=path.removeprefix(_MODEL_PREFIX)))
        raise NotFound(f"there is nothing at {path[:256]!r}")

    def _with_body(self, endpoint: BodyHandler) -> Handler:
        async def handler(exchange: Exchange) -> None:
            body = await exchange.read_json(self._max_body_bytes)
            await exchange.until_disconnect(endpoint(exchange, body))

        return handler


def _get(handler: Handler) -> Mapping[str, Handler]:
    return {"GET": handler, "HEAD": handler}


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
