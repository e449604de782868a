"""What becomes known of one request: who asked, what for, how it ended, and which of its fields nobody read."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from llamafast.api.contents import Contents
from llamafast.config.server import UnknownFields
from llamafast.engine.types import ANYBODY, FinishReason, Generation
from llamafast.errors import InvalidRequest, LlamafastError

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}", re.ASCII)
_NOTHING: Mapping[str, float] = MappingProxyType({})
# W3C Trace Context: no version ff, no id of zeros; and of a list beside it what a member is, and how many there may be.
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STATE_KEY = rb"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_STATE_MEMBER = re.compile(_STATE_KEY + rb"=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_MAX_STATE_MEMBERS = 32


class Identity(NamedTuple):
    """Who asks, by the headers. ``request_id`` is the client's where it is sane, which is ``named`` then, else a new
    one; ``traceparent`` and ``tracestate`` (W3C Trace Context) are empty without valid ones, ``peer``, the address that
    is asked from, over a Unix socket."""

    request_id: bytes
    traceparent: bytes
    named: bool = False
    peer: str = ""
    tracestate: bytes = b""

    @classmethod
    def of(cls, fields: Sequence[tuple[bytes, bytes]], client: Sequence[Any] | None = None) -> Identity:
        """By ASGI's ``headers``, and its ``client``: an address and a port, if anything."""
        headers = dict(fields)
        given, trace = headers.get(b"x-request-id", b""), headers.get(b"traceparent", b"")
        named = _SANE_REQUEST_ID.fullmatch(given) is not None
        trace = trace if _TRACEPARENT.fullmatch(trace) else b""
        states = (
            [value for name, value in fields if name == b"tracestate"] if trace and b"tracestate" in headers else []
        )
        return cls(
            given if named else b"req_%b" % uuid4().hex.encode(),
            trace,
            named,
            "" if client is None else str(client[0]),
            _state(states),
        )

    def renamed(self, rid: object) -> Identity:
        """The same under the name that the body gives the request; a header's counts before it. Raises
        InvalidRequest."""
        name = rid.encode() if isinstance(rid, str) and rid.isascii() else b""
        if not _SANE_REQUEST_ID.fullmatch(name):
            raise InvalidRequest("`rid`: 1 to 128 letters, digits and characters of `._:/+=-`", param="rid")
        return self if self.named else self._replace(request_id=name, named=True)


def _state(fields: Iterable[bytes]) -> bytes:
    """The list in one field or several; empty for one that is none, of which nothing is kept."""
    state = b",".join(fields).strip(b" \t")
    members = [member for part in state.split(b",") if (member := part.strip(b" \t"))]
    valid = 0 < len(members) <= _MAX_STATE_MEMBERS and all(map(_STATE_MEMBER.fullmatch, members))
    return state if valid else b""


class Counted(Protocol):
    """What is told of the Generation that answers a request, or of several that do so together."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def completion_tokens(self) -> int: ...

    @property
    def cached_tokens(self) -> int: ...

    @property
    def finish_reasons(self) -> set[FinishReason]: ...

    @property
    def queue_seconds(self) -> float | None: ...

    @property
    def first_token_seconds(self) -> float | None: ...


class Record:
    """What the request log and the metrics tell of a request. ``status`` is that of the reply, 0 until there is one;
    ``tenant`` is whose request it is, once that is known; ``error`` what it was refused with, or what its answer ended
    with, and ``left`` that its client did not wait for that. ``model`` is the one that it names, "" none, ``served``
    the model or adapter that this is, once it is known to be here, ``stream`` whether it is answered in pieces, None
    where that says nothing, ``nothing_at`` the path of one that nothing answers. ``asked`` are numbers it asks for, by
    their fields, ``response_id`` is its answer's own. ``submitted`` is when the engine got it, as ``started`` by
    ``time.monotonic``; ``input_tokens`` are those of one that embeds, of which there is no generation. ``ignored`` are
    the fields that are read by nothing, here or by who passed it on, who has ``read_in_front``; ``unknown_fields`` is
    what is to become of such. ``contents`` are what it says and is answered, None where
    the log is not to have that.
    """

    __slots__ = (
        "asked",
        "contents",
        "error",
        "generation",
        "identity",
        "ignored",
        "input_tokens",
        "left",
        "method",
        "model",
        "nothing_at",
        "read_in_front",
        "response_id",
        "served",
        "started",
        "status",
        "stream",
        "submitted",
        "tenant",
        "unknown_fields",
    )

    def __init__(
        self, method: str, identity: Identity, unknown_fields: UnknownFields = "warn", content_chars: int = 0
    ) -> None:
        self.method = method
        self.identity = identity
        self.unknown_fields = unknown_fields
        self.contents = Contents(content_chars) if content_chars else None
        self.status = 0
        self.started = time.monotonic()
        self.generation: Counted | None = None
        self.tenant = ANYBODY
        self.error: LlamafastError | None = None
        self.left = False
        self.model = ""
        self.served = ""
        self.asked: Mapping[str, float] = _NOTHING
        self.response_id = ""
        self.submitted = 0.0
        self.input_tokens: int | None = None
        self.nothing_at = ""
        self.stream: bool | None = None
        self.read_in_front: frozenset[str] = frozenset()
        self.ignored: tuple[str, ...] = ()

    def says(self, request: Mapping[str, Any]) -> None:
        """Remember which model it names."""
        model = request.get("model")
        self.model = model if isinstance(model, str) else ""

    def follow(self, generation: Generation) -> Generation:
        """Remember what answers this request, now that it has been submitted: its tokens and times are told. What is
        returned is to be read in its place."""
        self.count(generation)
        return self.heard(generation)

    def count(self, answer: Counted) -> None:
        """The same of an answer that several generations make, each of which is to be read as ``heard``."""
        self.generation = answer
        self.submitted = time.monotonic()

    def heard(self, generation: Generation) -> Generation:
        """What is to be read in place of ``generation``."""
        return generation if self.contents is None else self.contents.hear(generation)
