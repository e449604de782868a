"""One HTTP exchange over ASGI: capped body, one reply, a watch on the client."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec

from llamafast.api.body_size import BodyLimits, BodySize, too_many_bytes
from llamafast.api.client_wait import ClientWait
from llamafast.api.record import Identity, Record
from llamafast.api.schema.fragments import ErrorBody, ErrorObject
from llamafast.errors import (
    InvalidKey,
    InvalidRequest,
    LlamafastError,
    MethodNotAllowed,
    RequestTimeout,
    UnsupportedMediaType,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

JSON_TYPE = b"application/json"
FORM_TYPE = b"multipart/form-data"
# What of a request was read by nothing.
IGNORED = b"x-llamafast-ignored"

# A body may be behind this rate by what comes in `server.body_seconds`, and never gains more than that ahead of it.
BYTES_PER_SECOND = 16 * 1024
# What a reader has `server.send_seconds` for, beside what Granian and the kernel hold ahead of it.
PIECE_BYTES = 256 * 1024
# How much of a body that nobody wants is read and thrown away, more than twice as much as `server.max_body_bytes` lets
# in by default, and how long each piece of it is waited for.
DISCARDED_BYTES = 64 * 2**20
DISCARD_SECONDS = 1.0
# How often somebody who watches on and on is asked for again: keys are taken away meanwhile.
RECHECK_SECONDS = 1.0

# Headers that several have something for.
_JOINED = frozenset({b"vary", IGNORED})
_CLOSE: Headers = ((b"connection", b"close"),)


class ClientGone(Exception):
    """The client left before its answer was complete; there is nobody to tell."""


class WireForm(NamedTuple):
    """What an API's clients read of any reply: ``error`` gives the status and the body of one that went wrong, by the
    request's id, which is in every header of ``id_headers``."""

    error: Callable[[LlamafastError, str], tuple[int, Any]]
    id_headers: tuple[bytes, ...]


class Exchange(Record):
    """A request and its one reply: ``start``, any number of ``write``, the last one with ``more=False``.

    The reply repeats the request's identity, so that a proxy can tell whose trace an answer belongs to, and has the
    ``origin_headers``, which tell a browser what the page behind the request may do. Where it ``closes``, its
    connection takes no other request. ``wait`` bounds how long the client may take to send the body, and to take in
    each piece of the reply. ``form`` is what the client's API has errors in. ``is_admin``: whoever asks may change the
    server; ``recheck`` raises InvalidKey once they may ask no more. ``passed_on``: another process answers, and
    tells of it.
    """

    __slots__ = (
        "_more",
        "_multiplexed",
        "_receive",
        "_send",
        "_size",
        "_wait",
        "closes",
        "form",
        "headers",
        "is_admin",
        "origin_headers",
        "passed_on",
        "path",
        "query",
        "recheck",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, wait: ClientWait) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        config = wait.config
        super().__init__(
            scope["method"],
            Identity.of(scope["headers"], scope.get("client")),
            config.unknown_fields,
            config.content_chars,
        )
        self._receive = receive
        self._send = send
        self._wait = wait
        self._size: BodySize | None = None
        self._more = True  # of the body is to come
        self.origin_headers: Headers = ()
        self.closes = False
        self.is_admin = False
        self.recheck: Callable[[], object] = lambda: None
        self.passed_on = False
        self.form = OPENAI
        self._multiplexed = scope.get("http_version") == "2"
        self.path: str = scope["path"]
        self.query = _parameters(scope.get("query_string", b""))

    async def read_json(self, limits: BodyLimits) -> bytes:
        """The request's JSON, within ``limits`` whatever its Content-Length says; it counts there until ``release``.

        Raises UnsupportedMediaType when the headers call it something else than plain JSON, BodyTooLarge, QueueFull
        when there are too many bodies, RequestTimeout when it comes too slowly, or InvalidRequest when it breaks off.
        """
        self._require(JSON_TYPE)
        body = await self._read(BodySize(limits), limits)
        if self.contents is not None:
            self.contents.asked(body)
        return body

    async def read_form(self, limits: BodyLimits) -> bytes:
        """The same where it has to be a form of fields and files; what it says is told by whoever takes it apart."""
        self._require(FORM_TYPE)
        return await self._read(BodySize(limits, is_json=False), limits)

    async def _read(self, size: BodySize, limits: BodyLimits) -> bytes:
        length = self.headers.get(b"content-length", b"")
        told = int(length[:20]) if length.isdigit() else 0
        refusal: LlamafastError | None = too_many_bytes(limits.max_bytes) if told > limits.max_bytes else None
        self._size = size
        chunks = []
        while refusal is None and self._more:
            chunk = await self._timely_chunk(size.n_bytes)
            if chunk is None:
                # The client may be there still: an end that is too early and chunks that are malformed look the same.
                raise InvalidRequest("the body is incomplete, or its chunks are malformed")
            try:
                size.add(chunk)
                chunks.append(chunk)
            except LlamafastError as error:
                refusal = error
                chunks.clear()
                size.release()
        if refusal is not None:
            raise refusal
        return b"".join(chunks)

    async def _timely_chunk(self, n_before: int) -> bytes | None:
        """The next chunk, behind ``n_before`` bytes. Raises RequestTimeout."""
        wait = self._wait
        wait.deadline = wait.body_due
        wait.reading = True
        try:
            chunk = await self._chunk()
        except asyncio.CancelledError:
            if not wait.expired or not wait.forgive():
                raise
            told = f"after {n_before} bytes too little of the body came for {wait.config.body_seconds:g} seconds"
            raise RequestTimeout(told) from None
        finally:
            wait.deadline = 0.0
            wait.reading = False
        wait.body_due = self._body_deadline(len(chunk or b""))
        return chunk

    def _body_deadline(self, n_more: int) -> float:
        """When the next bytes are due, now that as many have come: silence is bounded, however many there were."""
        wait = self._wait
        return min(wait.body_due + n_more / BYTES_PER_SECOND, time.monotonic() + wait.config.body_seconds)

    async def _chunk(self) -> bytes | None:
        """More of the body; None when its client has gone or sends nonsense."""
        message = await self._receive()
        gone = message["type"] == "http.disconnect"
        self._more = not gone and message.get("more_body", False)
        return None if gone else message.get("body", b"")

    async def _discard(self) -> None:
        """Read what is left of the body: a client that still sends when the connection closes never sees the reply. It
        has until the body's next bytes were due anyway, `server.body_seconds` at most."""
        n_bytes = 0
        with suppress(TimeoutError):
            while self._more and n_bytes <= DISCARDED_BYTES:
                # half a body is waited for as little as its sender seems to care
                left = self._wait.body_due - time.monotonic()
                async with asyncio.timeout(min(DISCARD_SECONDS, left)):
                    n_bytes += len(await self._chunk() or b"")

    @property
    def abandoned(self) -> bool:
        """Whether its client has stopped reading, and the work ends for that."""
        return self._wait.expired

    def release(self) -> None:
        """Nobody holds the body any more."""
        if self._size is not None:
            self._size.release()

    def _require(self, wanted: bytes) -> None:
        """A body of another type is refused; without any it is JSON."""
        kind = self.headers.get(b"content-type", JSON_TYPE).partition(b";")[0].strip().lower()
        if wanted == FORM_TYPE and kind != FORM_TYPE:
            raise UnsupportedMediaType("the body must be a form: send `content-type: multipart/form-data`")
        if wanted == JSON_TYPE and kind != JSON_TYPE and not kind.endswith(b"+json"):
            raise UnsupportedMediaType("the body must be JSON: send `content-type: application/json`")
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMediaType("a compressed body is not supported: send no `content-encoding`")

    async def start(self, status: int, headers: Headers) -> None:
        self.status = status
        told = [*headers, *self.origin_headers, *self._identity_headers(), *self._connection_headers()]
        if self.ignored:
            told.append((IGNORED, ", ".join(self.ignored).encode()))
        for joined in _JOINED:
            if len(values := [value for name, value in told if name == joined]) > 1:
                told = [*((name, value) for name, value in told if name != joined), (joined, b", ".join(values))]
        await self._send({"type": "http.response.start", "status": status, "headers": told})

    def _connection_headers(self) -> Headers:
        return _CLOSE if self.closes and not self._multiplexed else ()

    def _identity_headers(self) -> Headers:
        identity = self.identity
        ids = tuple((name, identity.request_id) for name in self.form.id_headers)
        return (*ids, *(((b"traceparent", identity.traceparent),) if identity.traceparent else ()))

    async def write(self, body: bytes, *, more: bool = True) -> None:
        if len(body) > PIECE_BYTES:
            last = (len(body) - 1) // PIECE_BYTES * PIECE_BYTES
            for start in range(0, last, PIECE_BYTES):
                await self.write(body[start : start + PIECE_BYTES])
            body = body[last:]
        wait = self._wait
        wait.deadline = time.monotonic() + wait.config.send_seconds
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        finally:
            wait.deadline = 0.0

    async def reply(self, status: int, body: bytes, content_type: bytes, headers: Headers = ()) -> None:
        """The whole answer at once; HEAD gets its headers only."""
        length = b"%d" % len(body)
        await self.start(status, ((b"content-type", content_type), (b"content-length", length), *headers))
        await self.write(b"" if self.method == "HEAD" else body, more=False)

    async def reply_json(self, value: Any, status: int = 200, headers: Headers = ()) -> None:
        await self.reply(status, msgspec.json.encode(value), JSON_TYPE, headers)

    async def reply_error(self, error: LlamafastError, headers: Headers = ()) -> None:
        self.error = error
        if error.retry_after is not None:
            seconds, milliseconds = math.ceil(error.retry_after), math.ceil(error.retry_after * 1000)
            headers = (*headers, (b"retry-after", b"%d" % seconds), (b"retry-after-ms", b"%d" % milliseconds))
        if error.should_retry is not None:
            headers = (*headers, (b"x-should-retry", b"true" if error.should_retry else b"false"))
        await self._discard()
        status, body = self.told(error)
        await self.reply_json(body, status, headers)

    def told(self, error: LlamafastError) -> tuple[int, Any]:
        """The status and the body that tell of ``error``."""
        return self.form.error(error, self.identity.request_id.decode())

    async def reply_options(self, allow: str) -> None:
        """Answer OPTIONS; a browser that asks for a page learns what the page may send: any header, no cookies."""
        methods = allow.encode()
        preflight = (
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", b"*, authorization"),
            (b"access-control-max-age", b"86400"),
        )
        await self.start(204, ((b"allow", methods), *(preflight if self.origin_headers else ())))
        await self.write(b"", more=False)

    async def reply_not_allowed(self, allow: str) -> None:
        """Answer a method that is none of ``allow``."""
        error = MethodNotAllowed(f"{self.path[:256]!r} takes {allow}, not {self.method[:32]!r}")
        await self.reply_error(error, ((b"allow", allow.encode()),))

    async def until_disconnect(self, work: Coroutine[Any, Any, None], *, endless: bool = False) -> None:
        """Run ``work`` to its end; cancel it and raise ClientGone when the client goes first, or InvalidKey when work
        that is ``endless`` is for somebody whose key was taken away.

        To be used once the body is read. ``send`` to a client that has gone raises nothing (ASGI 2.3), so waiting
        for ``http.disconnect`` is the only way to notice.
        """
        watcher = asyncio.create_task(self._disconnected())
        task = asyncio.create_task(work)
        watcher.add_done_callback(lambda _: task.cancel())
        checker = asyncio.create_task(self._refused()) if endless else None
        if checker is not None:
            checker.add_done_callback(lambda _: task.cancel())
        try:
            await task
        except asyncio.CancelledError:
            if watcher.done() and not watcher.cancelled():
                raise ClientGone from None
            if checker is not None and checker.done() and not checker.cancelled():
                raise checker.result() from None
            raise
        finally:
            watcher.cancel()
            if checker is not None:
                checker.cancel()

    async def _refused(self) -> InvalidKey:
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                self.recheck()
            except InvalidKey as error:
                return error

    async def _disconnected(self) -> None:
        # of a body that nobody read its end may come first
        while await self._chunk() is not None:
            pass


def _parameters(query: bytes) -> dict[str, str]:
    """The last value of each name."""
    return {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()} if query else {}


def error_body(error: LlamafastError) -> ErrorBody:
    return ErrorBody(ErrorObject(error.message, error.type, error.param, error.code))


OPENAI = WireForm(lambda error, _: (error.status, error_body(error)), (b"x-request-id",))
