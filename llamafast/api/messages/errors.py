"""What went wrong, as Anthropic's clients read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from msgspec import Struct

from llamafast.api.http import OPENAI, WireForm
from llamafast.api.sse import OPENAI_STREAM, StreamForm
from llamafast.errors import ContextLengthExceeded, EngineUnavailable, LlamafastError, QueueFull, ThreadUnsupported

VERSION = b"anthropic-version"
_OVERLOADED = 529
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}


class ErrorObject(Struct):
    type: str
    message: str
    details: dict[str, Any] | None = None


class ErrorReply(Struct):
    """Also the data of a stream's event ``error``."""

    error: ErrorObject
    request_id: str
    type: Literal["error"] = "error"


def told(error: LlamafastError, request_id: str) -> tuple[int, ErrorReply]:
    """The status and the body of ``error``. Who is told to come back later waits and tries again by itself."""
    status, message, details = error.status, error.message, None
    if isinstance(error, (QueueFull, EngineUnavailable)):
        status = _OVERLOADED
    elif isinstance(error, ContextLengthExceeded):
        # clients read both numbers, and make room
        message = f"prompt is too long: {error.n_tokens} tokens > {error.limit} maximum"
    elif isinstance(error, ThreadUnsupported):
        # by which clients know to send everything
        details = {"error_code": error.code, "unsupported": []}
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    return status, ErrorReply(ErrorObject(kind, message, details), request_id)


ANTHROPIC = WireForm(told, (b"x-request-id", b"request-id"))
ANTHROPIC_STREAM = StreamForm(b"", b'event: ping\ndata: {"type":"ping"}\n\n', b"event: error\n")


def form_of(path: str, headers: Mapping[bytes, bytes]) -> WireForm:
    """In which form a request to ``path`` is answered: /v1/models serves clients of both APIs."""
    models = path == "/v1/models" or path.startswith("/v1/models/")
    if path == "/v1/messages" or path.startswith("/v1/messages/") or (models and VERSION in headers):
        return ANTHROPIC
    return OPENAI


def stream_form_of(path: str) -> StreamForm:
    """In which form a stream from ``path`` is told of what happens to it."""
    return ANTHROPIC_STREAM if path == "/v1/messages" else OPENAI_STREAM
