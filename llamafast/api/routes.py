"""Path → what answers it, and who may ask."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from llamafast.api.http import Exchange

Handler = Callable[..., Awaitable[None]]
# Whose request is answered: anybody's, that of whoever has a key, or an administrator's.
Access = Literal["open", "key", "admin"]

# What clients of other servers call the same.
CHAT = ("/v1/chat/completions", "/chat/completions")
RESPONSES_POST = "/responses"
RERANK = ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking")  # Jina's, Cohere's, llama-server's
HEALTH = ("/health", "/v1/health")


class Route(NamedTuple):
    """``path`` is also the route's name in metrics and log. Where it has an ``{id}`` the methods get what stands in its
    place, which matches the regular expression ``id_pattern``, as their second argument. ``changes`` are methods that
    are an administrator's. Probes may call the server by any name."""

    path: str
    methods: Mapping[str, Handler]
    access: Access = "key"
    changes: frozenset[str] = frozenset()
    id_pattern: str = "[^/]*"
    is_probe: bool = False

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


def get(handler: Handler) -> Mapping[str, Handler]:
    return {"GET": handler, "HEAD": handler}


async def dispatch(route: Route, ids: tuple[str, ...], exchange: Exchange) -> None:
    """Answer with the exchange's method, OPTIONS with which there are."""
    if handler := route.methods.get(exchange.method):
        await handler(exchange, *ids)
    elif exchange.method == "OPTIONS":
        await exchange.reply_options(route.allow)
    else:
        await exchange.reply_not_allowed(route.allow)


def _pattern(route: Route) -> re.Pattern[str]:
    before, _, after = route.path.partition("{id}")
    return re.compile(f"{re.escape(before)}({route.id_pattern}){re.escape(after)}", re.DOTALL)
