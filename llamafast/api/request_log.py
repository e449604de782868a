"""One line per request: who asked, how it ended, what it took."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from llamafast.api.http import Exchange

log = logging.getLogger("llamafast.requests")


def log_request(exchange: Exchange, route: str) -> None:
    """``key=value`` pairs of an exchange that has ended. GETs that went well are probes and scrapes: not worth a line.

    ``route`` is the name of the endpoint: nothing a client wrote but its checked ids gets into the log.
    """
    if log.isEnabledFor(logging.INFO) and (exchange.method == "POST" or exchange.status >= 400):
        log.info("request %s", " ".join(f"{key}={value}" for key, value in _fields(exchange, route)))


def _fields(exchange: Exchange, route: str) -> Iterator[tuple[str, object]]:
    yield "id", exchange.request_id.decode()
    yield "route", route
    yield "status", exchange.status
    if (generation := exchange.generation) is not None:
        yield "prompt", generation.prompt_tokens
        yield "cached", generation.cached_tokens
        yield "completion", generation.completion_tokens
        yield "finish", ",".join(sorted(generation.finish_reasons)) or "none"
        for key, seconds in (
            ("queue_ms", generation.queue_seconds),
            ("first_token_ms", generation.first_token_seconds),
        ):
            if seconds is not None:
                yield key, f"{1000 * seconds:.1f}"
    yield "total_ms", f"{1000 * (time.monotonic() - exchange.started):.1f}"
    if exchange.traceparent:
        yield "traceparent", exchange.traceparent.decode()
