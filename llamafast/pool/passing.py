"""Requests and answers on their way between a client and a child, byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from urllib.parse import urlencode

import httpcore2

from llamafast.api.http import PIECE_BYTES, Exchange
from llamafast.api.messages.errors import stream_form_of
from llamafast.api.sse import EventStream, StreamForm, frame
from llamafast.engine.types import ANYBODY, Tenant
from llamafast.errors import EngineUnavailable, ModelDied
from llamafast.loop_sockets import Scarce
from llamafast.pool.children import Door
from llamafast.pool.tenants import HEADER, told

# What a child reads of a client's headers, beside what the parent says in them. As a server of Granian's it takes a
# hundred and no more.
_PASSED_ON = (b"content-type", b"accept", b"anthropic-version", b"anthropic-beta")
_NOT_PASSED_BACK = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"transfer-encoding",
        b"date",
        b"server",
        b"request-id",
        b"x-request-id",
        b"traceparent",
    }
)
_EVENTS = b"text/event-stream"
OUT_OF_CONNECTIONS = "the server has no more descriptors for connections to its models"
LOST = (httpcore2.NetworkError, httpcore2.RemoteProtocolError)


async def ask(door: Door, method: str, path: str, tenant: Tenant = ANYBODY, admin: bool = False) -> tuple[int, bytes]:
    """A request of the parent's own: status and body. Raises what LOST says."""
    headers = [(b"host", b"localhost"), (b"content-length", b"0"), (HEADER, told(tenant, admin, door.secret))]
    response = await door.http.request(method, _url(path), headers=headers)
    return response.status, response.content


class Body:
    """A request's body, which nobody else holds and which is forgotten once it is passed on: answers may take long."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def pieces(self, exchange: Exchange) -> AsyncIterator[bytes]:
        """Others have their turn between two of them: hundreds of megabytes at one go would hold them up."""
        for start in range(0, len(self.data), PIECE_BYTES):
            yield self.data[start : start + PIECE_BYTES]
        self.data = b""
        exchange.release()


async def pass_on(
    exchange: Exchange,
    door: Door,
    body: Body,
    stream: EventStream | None = None,
    before: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Let the child answer, into ``stream`` where that has begun, and do ``before`` before a good answer is told.

    Raises EngineUnavailable where no connection is to be had, or ModelDied while nothing of the answer is known; later
    a stream of events ends with that as its last one, and anything else breaks off.
    """
    path = exchange.path + (f"?{urlencode(exchange.query)}" if exchange.query else "")
    headers = [*_request_headers(exchange, door), (b"content-length", b"%d" % len(body.data))]
    is_stream = stream is not None
    last = b""
    try:
        async with door.http.stream(
            exchange.method, _url(path), headers=headers, content=body.pieces(exchange)
        ) as response:
            exchange.passed_on = True
            kind = dict(_lower(response.headers)).get(b"content-type", b"")
            if before is not None and response.status < 300:
                await before()
            if stream is not None:
                await _pass_into(stream, response, kind, stream_form_of(exchange.path))
                return
            is_stream = kind.startswith(_EVENTS)
            await exchange.start(response.status, tuple(_reply_headers(response.headers)))
            async for piece in response.aiter_stream():
                last = piece
                await exchange.write(piece)
            await exchange.write(b"", more=False)
    except Scarce as scarce:
        raise EngineUnavailable(OUT_OF_CONNECTIONS) from scarce
    except LOST:
        exchange.passed_on = False
        error = ModelDied("the process of this model ended while it answered")
        if not exchange.status:
            raise error from None
        if is_stream:
            # what has come of an event that is cut is nobody's
            ending = b"" if last.endswith(b"\n\n") or not last else b"\n\n"
            _, told_of = exchange.told(error)
            await exchange.write(ending + stream_form_of(exchange.path).error + frame(told_of), more=False)
        exchange.status = error.status
        exchange.error = error


async def _pass_into(stream: EventStream, response: httpcore2.Response, kind: bytes, form: StreamForm) -> None:
    """Pings have gone out already, and with them the status."""
    if response.status == 200 and kind.startswith(_EVENTS):
        async for piece in response.aiter_stream():
            await stream.write(piece)
        await stream.write(b"", more=False)
    else:
        error = b"data: %b\n\n" % (await response.aread()).replace(b"\n", b" ")
        await stream.write(form.error + error, more=False)


def _request_headers(exchange: Exchange, door: Door) -> Iterable[tuple[bytes, bytes]]:
    yield b"host", b"localhost"
    yield HEADER, told(exchange.tenant, exchange.is_admin, door.secret, exchange.identity.peer)
    yield b"x-request-id", exchange.identity.request_id
    if exchange.identity.traceparent:
        yield b"traceparent", exchange.identity.traceparent
    if exchange.identity.tracestate:
        yield b"tracestate", exchange.identity.tracestate
    for name in _PASSED_ON:
        if (value := exchange.headers.get(name)) is not None:
            yield name, value


def _reply_headers(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in _lower(headers):
        if name not in _NOT_PASSED_BACK:
            yield name, value


def _lower(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in headers:
        yield name.lower(), value


def _url(path: str) -> httpcore2.URL:
    return httpcore2.URL(scheme=b"http", host=b"localhost", port=None, target=path.encode())
