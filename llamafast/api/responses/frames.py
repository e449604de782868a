"""WS /v1/responses: what clients send, and what they are told beside the events of responses."""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from llamafast.api.decode import invalid_field
from llamafast.api.responses.schema import ResponsesRequest
from llamafast.api.schema.fragments import ErrorObject
from llamafast.errors import InvalidRequest

FrameT = TypeVar("FrameT")


class ResponseCreate(ResponsesRequest, kw_only=True):
    """A client's frame: the request of POST /v1/responses and what only a socket has. It always streams."""

    type: Literal["response.create"]
    generate: bool | None = None
    stream_id: str | None = None
    stream: bool | None = True


class FrameKind(Struct):
    type: str | None = None
    stream_id: str | None = None


class Steer(Struct):
    previous_response_id: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")


class SteerFailed(Struct, kw_only=True):
    """A response that runs takes no more input here."""

    type: Literal["response.steer.failed"] = "response.steer.failed"
    error: dict[str, str]
    steer: Steer
    stream_id: str | UnsetType = UNSET


class ErrorFrame(Struct, kw_only=True):
    """A request that was refused; the socket stays open."""

    type: Literal["error"] = "error"
    status: int
    error: ErrorObject
    stream_id: str | UnsetType = UNSET


def decode_frame(decoder: msgspec.json.Decoder[FrameT], frame: bytes) -> FrameT:
    """Raises InvalidRequest when ``frame`` is not JSON or not of that shape."""
    try:
        return decoder.decode(frame)
    except msgspec.ValidationError as error:
        fault = invalid_field(str(error), whole="the frame")
        fault.code = "invalid_request_error"
        raise fault from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the frame is not valid JSON: {error}", code="invalid_json") from error
