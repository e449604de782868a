"""What a trace has of a request: one span, by OpenTelemetry's conventions for servers and for generative AI.

Made when the request has ended, of what its Record and its Generation know by then. Nothing that a prompt or an answer
says is in it: names, counts and times only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol
from urllib.parse import quote

from llamafast.api.record import Record
from llamafast.api.routes import CHAT, RERANK, RESPONSES_POST, TRANSCRIPTIONS, TRANSLATIONS

Value = str | bool | int | float | list[str]

PROVIDER = "llamafast"
# Of names that clients have written so much is told.
MAX_CHARS = 128
# The largest integer of a span; clients may write larger ones where the model has a bound that is lower.
MAX_INTEGER = 2**63 - 1

# What a request does, by its route, in the words of the conventions where they have one. Of others the name of the span
# is its method and its route.
OPERATIONS: Mapping[str, str] = {
    **dict.fromkeys((*CHAT, "/v1/responses", RESPONSES_POST, "ws:/v1/responses", "/v1/messages"), "chat"),
    "/v1/responses/compact": "chat",
    **dict.fromkeys(("/v1/completions", "/completion", "/completions", "/infill"), "text_completion"),
    "/v1/embeddings": "embeddings",
    **dict.fromkeys(RERANK, "rerank"),
    "/v1/score": "score",
    TRANSCRIPTIONS: "transcription",
    TRANSLATIONS: "translation",
}
NO_ROUTE = "other"
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})


class Span(NamedTuple):
    """Times are nanoseconds since 1970, ``events`` names and theirs. ``fault`` says why it is an error, None: it is
    none. ``traceparent`` (W3C Trace Context) is the client's span, b"" without one, ``tracestate`` what else is said of
    it."""

    name: str
    start: int
    end: int
    attributes: Mapping[str, Value]
    events: tuple[tuple[str, int], ...]
    fault: str | None
    traceparent: bytes
    tracestate: bytes = b""


class SpanSink(Protocol):
    """Where spans go. On the event loop; never waits."""

    def add(self, span: Span) -> None: ...


def _operation(record: Record, route: str) -> str | None:
    return OPERATIONS.get(route)


def _method(record: Record, route: str) -> str | None:
    if record.method == "WS":
        return None  # a frame has none
    return record.method if record.method in _METHODS else "_OTHER"


def _error_type(record: Record, route: str) -> str | None:
    if record.left:
        return "cancelled"
    return None if record.error is None else record.error.code or record.error.type


def _max_tokens(record: Record, route: str) -> float | None:
    """A request that says below 0 sets no limit."""
    asked = record.asked
    names = ("max_completion_tokens", "max_output_tokens", "n_predict", "max_tokens")
    limit = next((asked[name] for name in names if name in asked), None)
    return min(limit, MAX_INTEGER) if limit is not None and limit >= 0 else None


def _asked(name: str) -> Callable[[Record, str], float | None]:
    return lambda record, _: None if (number := record.asked.get(name)) is None else min(number, MAX_INTEGER)


def _choices(record: Record, route: str) -> float | None:
    n = record.asked.get("n", 1)
    return n if n != 1 else None


def _finish_reasons(record: Record, route: str) -> list[str] | None:
    return sorted(record.generation.finish_reasons) or None if record.generation is not None else None


def _input_tokens(record: Record, route: str) -> int | None:
    return record.input_tokens if record.generation is None else record.generation.prompt_tokens


def _output_tokens(record: Record, route: str) -> int | None:
    return None if record.generation is None else record.generation.completion_tokens


def _cached_tokens(record: Record, route: str) -> int | None:
    return None if record.generation is None else record.generation.cached_tokens


def _first_chunk(record: Record, route: str) -> float | None:
    at = _first_token(record)
    return round(at - record.started, 6) if at is not None and record.stream else None


def _named(name: str) -> str | None:
    return name[:MAX_CHARS] or None


# Every name that a span has, and where its value is from; what is None is left out. Those of ``gen_ai`` are of
# semantic-conventions-genai, which is in development: where they change this is the place.
ATTRIBUTES: Mapping[str, Callable[[Record, str], Value | None]] = {
    "gen_ai.operation.name": _operation,
    "gen_ai.provider.name": lambda record, route: PROVIDER if route in OPERATIONS else None,
    "gen_ai.request.model": lambda record, _: _named(record.model),
    "gen_ai.request.stream": lambda record, _: record.stream or None,
    "gen_ai.request.max_tokens": _max_tokens,
    "gen_ai.request.temperature": _asked("temperature"),
    "gen_ai.request.top_p": _asked("top_p"),
    "gen_ai.request.top_k": _asked("top_k"),
    "gen_ai.request.frequency_penalty": _asked("frequency_penalty"),
    "gen_ai.request.presence_penalty": _asked("presence_penalty"),
    "gen_ai.request.seed": _asked("seed"),
    "gen_ai.request.choice.count": _choices,
    "gen_ai.embeddings.dimension.count": _asked("dimensions"),
    "gen_ai.response.id": lambda record, _: record.response_id or None,
    "gen_ai.response.model": lambda record, route: record.served or None if route in OPERATIONS else None,
    "gen_ai.response.finish_reasons": _finish_reasons,
    "gen_ai.response.time_to_first_chunk": _first_chunk,
    "gen_ai.usage.input_tokens": _input_tokens,
    "gen_ai.usage.output_tokens": _output_tokens,
    "gen_ai.usage.cache_read.input_tokens": _cached_tokens,
    "http.request.method": _method,
    "http.route": lambda record, route: route if route != NO_ROUTE and record.method != "WS" else None,
    "http.response.status_code": lambda record, _: record.status if record.method != "WS" else None,
    "url.path": lambda record, _: _named(quote(record.nothing_at[:MAX_CHARS], safe="/.:@~", errors="replace")),
    "error.type": _error_type,
    "llamafast.request.id": lambda record, _: record.identity.request_id.decode(),
    "llamafast.key": lambda record, _: record.tenant.name or None,
}
# Points in time of a span: work on it has begun, its first token is there.
ADMITTED, FIRST_TOKEN = "admitted", "first_token"


def span_of(record: Record, route: str) -> Span:
    """Of a request that has ended just now; ``route`` is its endpoint's name."""
    now, wall = time.monotonic(), time.time_ns()

    def at(moment: float) -> int:
        return wall - round((now - moment) * 1e9)

    told = {name: value(record, route) for name, value in ATTRIBUTES.items()}
    return Span(
        _name(record, route),
        at(record.started),
        wall,
        {name: value for name, value in told.items() if value is not None},
        tuple((name, at(moment)) for name, moment in _events(record)),
        _fault(record),
        record.identity.traceparent,
        record.identity.tracestate,
    )


def _name(record: Record, route: str) -> str:
    """Of few different ones: of a model's names only those that there are."""
    if route in OPERATIONS:
        return f"{OPERATIONS[route]} {record.served}".rstrip()
    method = record.method if record.method in _METHODS else "HTTP"
    return method if route == NO_ROUTE else f"{method} {route}"


def _events(record: Record) -> Iterator[tuple[str, float]]:
    if record.generation is not None:
        if (waited := record.generation.queue_seconds) is not None:
            yield ADMITTED, record.submitted + waited
        if (first := _first_token(record)) is not None:
            yield FIRST_TOKEN, first


def _first_token(record: Record) -> float | None:
    if record.generation is None or (seconds := record.generation.first_token_seconds) is None:
        return None
    return record.submitted + seconds


def _fault(record: Record) -> str | None:
    """Why the server, or the answer, has failed. That a client's request was refused is no error of a server's span,
    as the conventions have it."""
    error = record.error
    begun = record.status < 400
    if error is not None and (begun or record.status >= 500):
        return error.reason
    return f"status {record.status}" if record.status >= 500 else None
