"""What becomes known of each request when it has ended: a count in the metrics, a line in the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from llamafast import metrics
from llamafast.api.http import Record
from llamafast.config import ServerConfig

log = logging.getLogger("llamafast.requests")

# Others that went well are probes and scrapes: not worth a line.
_LOGGED_METHODS = frozenset({"POST", "WS"})


class RequestLog:
    """With ``request_log`` requests also get a line each, in ``key=value`` pairs."""

    def __init__(self, config: ServerConfig) -> None:
        self._lines = config.request_log

    def add(self, record: Record, route: str) -> None:
        """``route`` is the name of the endpoint: nothing a client wrote but its checked ids gets into the log."""
        metrics.observe_http(route, record.status)
        if self._lines and log.isEnabledFor(logging.INFO) and _is_news(record):
            log.info("request %s", " ".join(f"{key}={value}" for key, value in _fields(record, route)))


def _is_news(record: Record) -> bool:
    return record.method in _LOGGED_METHODS or record.status >= 400


def _fields(record: Record, route: str) -> Iterator[tuple[str, object]]:
    yield "id", record.identity.request_id.decode()
    yield "route", route
    yield "status", record.status
    if record.tenant.name:
        yield "key", record.tenant.name
    if (generation := record.generation) is not None:
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
    yield "total_ms", f"{1000 * (time.monotonic() - record.started):.1f}"
    if record.identity.traceparent:
        yield "traceparent", record.identity.traceparent.decode()
