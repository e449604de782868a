"""Path → what answers it, and who may ask."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Literal, NamedTuple

from llamafast.api.http import Exchange, WireForm

Endpoint = Callable[..., Awaitable[None]]
# Whose request is answered: anybody's, that of whoever has a key, or an administrator's.
Access = Literal["open", "key", "admin"]

# What clients of other servers call the same.
CHAT = ("/v1/chat/completions", "/chat/completions")
RENDER_CHAT = tuple(f"{path}/render" for path in CHAT)
RENDER_COMPLETION = "/v1/completions/render"
RESPONSES_POST = "/responses"
TRANSCRIPTIONS, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
RERANK = ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking")  # Jina's, Cohere's, llama-server's
MODELS = ("/v1/models", "/models")
HEALTH = ("/health", "/v1/health")


# Of a path that nothing is at so much is compared, and so many are told in its place.
MAX_PATH, MAX_NEAR, MAX_SPELLED = 256, 8, 3
_TWICE = re.compile(r"^/v1(?:/v1)+/")
# The last words of Ollama's and other servers' paths for what is here.
_MEANT = {
    "chat": "chat/completions", "generate": "completions", "complete": "completions", "embed": "embeddings",
    "embedding": "embeddings", "tags": "models", "show": "models", "ps": "models", "rerankings": "rerank",
    "token": "tokenize", "encode": "tokenize", "healthcheck": "health", "status": "health", "ping": "health",
}  # fmt: skip


class Route(NamedTuple):
    """``path`` is also the route's name in metrics and log. Where it has an ``{id}`` the methods get what stands in its
    place, which matches the regular expression ``id_pattern``, as their second argument. ``changes`` are methods that
    are an administrator's. Probes may call the server by any name. ``form`` is that of another API's errors."""

    path: str
    methods: Mapping[str, Endpoint]
    access: Access = "key"
    changes: frozenset[str] = frozenset()
    id_pattern: str = "[^/]*"
    is_probe: bool = False
    form: WireForm | None = None

    @property
    def allow(self) -> str:
        return ", ".join([*self.methods, "OPTIONS"])


class Routes:
    """Paths are exact: with a trailing slash it is another one."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.all = tuple(routes)
        self._exact = {route.path: route for route in self.all if "{id}" not in route.path}
        self._patterns = [(_pattern(route), route) for route in self.all if "{id}" in route.path]

    def find(self, path: str) -> tuple[Route, tuple[str, ...]] | None:
        """The route of a percent-decoded ``path``, and the id in it where it has one: ids may be any text."""
        if route := self._exact.get(path):
            return route, ()
        for pattern, route in self._patterns:
            if match := pattern.fullmatch(path):
                return route, match.groups()
        return None

    def near(self, path: str) -> list[str]:
        """What may have been meant by a path that nothing is at, each with its methods, the likeliest first: the same
        without what is too much in it, one that ends as it does, what is below it, or what is spelled like it."""
        told = {route.path: f"{next(iter(route.methods))} {route.path}" for route in self.all}
        clean = "/" + "/".join(part for part in path[:MAX_PATH].split("/") if part)
        tail = clean.rpartition("/")[2].lower()
        clean = _TWICE.sub("/v1/", clean)
        if same := [told[known] for known in told if known in (clean, f"/v1{clean}")]:
            return same
        found = [known for known in told if known.endswith(f"/{_MEANT.get(tail, tail)}")]
        if clean != "/":
            found += [known for known in told if known.startswith(f"{clean}/")]
        found += get_close_matches(clean, told, n=MAX_SPELLED, cutoff=0.75)
        return [told[known] for known in dict.fromkeys(found)][:MAX_NEAR]


def get(endpoint: Endpoint) -> Mapping[str, Endpoint]:
    return {"GET": endpoint, "HEAD": endpoint}


async def dispatch(route: Route, ids: tuple[str, ...], exchange: Exchange) -> None:
    """Answer with the exchange's method, OPTIONS with which there are."""
    if endpoint := route.methods.get(exchange.method):
        await endpoint(exchange, *ids)
    elif exchange.method == "OPTIONS":
        await exchange.reply_options(route.allow)
    else:
        await exchange.reply_not_allowed(route.allow)


def _pattern(route: Route) -> re.Pattern[str]:
    before, _, after = route.path.partition("{id}")
    return re.compile(f"{re.escape(before)}({route.id_pattern}){re.escape(after)}", re.DOTALL)
