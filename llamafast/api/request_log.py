"""What becomes known of each request when it has ended: counts in the metrics, a line in the log, a span of a trace."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import quote

from llamafast import metrics
from llamafast.api.record import Record
from llamafast.api.spans import SpanSink, span_of
from llamafast.config import ServerConfig
from llamafast.errors import AnswerTimeout, LlamafastError, QueueTimeout, ShuttingDown

log = logging.getLogger("llamafast.requests")

# Others that went well are probes and scrapes: not worth a line.
_LOGGED_METHODS = frozenset({"POST", "WS"})
# What a value may be made of to stand as it is.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/+=,%*@~-]+", re.ASCII)
_MOST_CHARS = 128


class RequestLog:
    """With ``request_log`` requests also get a line each, in ``key=value`` pairs, or as fields of a line of JSON; with
    ``spans``, whatever the log has, a span each goes there."""

    def __init__(self, config: ServerConfig, spans: SpanSink | None = None) -> None:
        self._lines = config.request_log
        self._spans = spans

    def add(self, record: Record, route: str) -> None:
        """``route`` is the name of the endpoint. Nothing that a client wrote gets into the log but names: its ids, the
        model's, those of fields, and the path where no endpoint is; all the rest only where the config says so."""
        metrics.observe_http(route, record.status)
        if record.error is not None:
            metrics.observe_refusal(route, record.error.code or record.error.type)
        if not _is_news(record):
            return
        if self._spans is not None:
            self._spans.add(span_of(record, route))
        if self._lines is not False and log.isEnabledFor(logging.INFO):
            fields = dict(_fields(record, route))
            text = " ".join(f"{key}={_plain(value)}" for key, value in fields.items())
            log.info("request %s", text, extra={"fields": fields})


def _is_news(record: Record) -> bool:
    return record.method in _LOGGED_METHODS or record.status >= 400


def _fields(record: Record, route: str) -> Iterator[tuple[str, str | int | float | bool | list[str]]]:
    yield "id", record.identity.request_id.decode()
    yield "route", route
    if record.nothing_at:
        yield "path", quote(record.nothing_at[:_MOST_CHARS], safe="/.:@~", errors="replace")[:_MOST_CHARS]
    yield "status", record.status
    if peer := _elsewhere(record.identity.peer):
        yield "peer", peer
    if record.tenant.name:
        yield "key", record.tenant.name
    if record.model:
        yield "model", record.model[:_MOST_CHARS]
    if record.stream is not None:
        yield "stream", record.stream
    if (generation := record.generation) is not None:
        yield "prompt", generation.prompt_tokens
        yield "cached", generation.cached_tokens
        yield "completion", generation.completion_tokens
        yield "finish", ",".join([*sorted(generation.finish_reasons), *_broken_off(record)]) or "stop"
        for key, seconds in (
            ("queue_ms", generation.queue_seconds),
            ("first_token_ms", generation.first_token_seconds),
        ):
            if seconds is not None:
                yield key, round(1000 * seconds, 1)
    yield "total_ms", round(1000 * (time.monotonic() - record.started), 1)
    if record.error is not None:
        yield from _of_error(record.error)
    if record.ignored:
        yield "ignored", ",".join(record.ignored)
    if record.identity.traceparent:
        yield "traceparent", record.identity.traceparent.decode()
    if (contents := record.contents) is not None:
        if contents.body:
            yield "body", contents.body
        if (answer := contents.answer) is not None:
            yield "answer", answer


def _elsewhere(peer: str) -> str:
    """An address that is another machine's; that it was asked by itself tells nobody anything."""
    try:
        address = ip_address(peer)
    except ValueError:
        return ""
    address = getattr(address, "ipv4_mapped", None) or address
    return "" if address.is_loopback else str(address)


def _broken_off(record: Record) -> Iterator[str]:
    """What ended an answer that did not end by itself."""
    if record.left:
        yield "cancelled"
    elif isinstance(record.error, ShuttingDown):
        yield "shutdown"
    elif isinstance(record.error, (QueueTimeout, AnswerTimeout)):
        yield "timeout"
    elif record.error is not None:
        yield "failed"


def _of_error(error: LlamafastError) -> Iterator[tuple[str, str]]:
    yield "error", error.reason
    if error.param:
        yield "param", error.param[:_MOST_CHARS]
    yield "code", error.code or error.type


def _plain(value: object) -> str:
    if isinstance(value, list):
        return json.dumps(json.dumps(value))
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
