"""JSON body → typed request, or an error that names the field at fault."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from llamafast.api.cut_body import cut
from llamafast.api.media_texts import InRequest
from llamafast.api.schema.embeddings import PoolingOptions
from llamafast.api.schema.fragments import INSTEAD, GenerationOptions
from llamafast.engine.types import ModelInfo
from llamafast.errors import InvalidRequest, ModelNotFound, UnsupportedParameter

T = TypeVar("T")
Request = TypeVar("Request", bound=GenerationOptions | PoolingOptions)

# A double has less than 800 significant digits.
MAX_NUMBER_CHARS = 1000
# What is searched in one call.
PIECE_BYTES = 1 << 20

# What a field says nothing by.
_NOTHING: tuple[object, ...] = (None, "", [], {})

_AT_PATH = re.compile(r"(?P<what>.*) - at `\$\.?(?P<path>[^`]*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")


def decode_request(
    decoder: msgspec.json.Decoder[Request], body: bytes, info: ModelInfo, *, detach: InRequest | None = None
) -> Request:
    """Decode and check all that needs neither model nor template. Texts that ``detach`` finds may be DetachedText.

    Raises InvalidRequest (not JSON, a repeated key, a wrong type or range), UnsupportedParameter or ModelNotFound.
    """
    tree = parse(body) if detach is None else parse_cut(body, detach)
    # first: who sends a field of another endpoint may lack one of this one's
    check_native(tree, decoder.type.foreign)
    request = convert(tree, decoder)
    check_model(request.model, info)
    check_served(request)
    return request


def parse(body: bytes) -> object:
    """The JSON value in ``body``; integral numbers are ints however they are written (8.0, 1e3), as in JSON Schema.

    Raises InvalidRequest: not JSON (RFC 8259, UTF-8), a key twice in one object, a number beyond a double's.
    """
    try:
        tree = _JSON.decode(body.decode())
        if _has_surrogate(body):
            msgspec.json.decode(body)  # which wants both halves of a surrogate pair
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("the body is not valid UTF-8") from error
    except (msgspec.DecodeError, ValueError) as error:
        hint = " (a surrogate escape without its other half is not valid)" if _has_surrogate(body) else ""
        raise InvalidRequest(f"the body is not valid JSON: {error}{hint}") from error
    return tree


def parse_cut(body: bytes, detach: InRequest) -> object:
    """The same, the long base64 of media that ``detach`` finds left where it is."""
    if (parts := cut(body)) is None:
        return parse(body)
    try:
        return parts.put_back(detach(parse(parts.rest), parts.detached))
    except (InvalidRequest, RecursionError):
        # the whole is refused, if at all, and with its own places and keys
        return parse(body)


def _has_surrogate(body: bytes) -> bool:
    """Whether there may be an escaped surrogate. Looked for piece by piece: a body of nothing but "u" takes long, and
    between two pieces another thread may have the GIL."""
    return b"\\" in body and any(
        body.find(escape, at, at + PIECE_BYTES + len(escape) - 1) >= 0
        for at in range(0, len(body), PIECE_BYTES)
        for escape in (b"\\ud", b"\\uD")
    )


def convert(tree: object, decoder: msgspec.json.Decoder[T]) -> T:
    """What ``parse`` gave, as the type of ``decoder``. Raises InvalidRequest: a wrong type or range."""
    try:
        converted: T = msgspec.convert(tree, decoder.type)
        return converted
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from error


def check_model(model: str | None, info: ModelInfo) -> None:
    """Raises ModelNotFound for a name that is neither the served model's nor an adapter's; no name means that one."""
    if model and model != info.id and model not in info.adapters:
        names = ", ".join(map(repr, (info.id, *info.adapters)))
        raise ModelNotFound(f"the model {model[:128]!r} does not exist; this server has {names}", param="model")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of equal keys the decoder would keep the last; a gateway in front may have judged the first."""
    tree = dict(pairs)
    if len(tree) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise InvalidRequest(f"the key {name[:64]!r} occurs twice in one object", param=name[:64])
            seen.add(name)
    return tree


# Numbers are converted in Python: between two of them another thread may have the GIL.
def _integer(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARS:
        raise ValueError(f"a number has more than {MAX_NUMBER_CHARS} characters")
    return int(text)


def _number(text: str) -> int | float:
    if len(text) > MAX_NUMBER_CHARS:
        raise ValueError(f"a number has more than {MAX_NUMBER_CHARS} characters")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:64]} is too large for a number")
    return int(number) if number.is_integer() and abs(number) < 2**63 else number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant)


def _invalid_field(text: str) -> InvalidRequest:
    """msgspec's ``Expected … - at `$.path``` in the server's words; for an object's values it writes ``[...]``."""
    at = _AT_PATH.fullmatch(text)
    what, path = (at["what"], at["path"].replace("[...]", "")) if at else (text, "")
    if missing := _MISSING.fullmatch(what):
        path = f"{path}.{missing['name']}".lstrip(".")
        return InvalidRequest(f"`{path}` is required", param=path)
    what = what[:1].lower() + what[1:]
    return InvalidRequest(f"`{path}`: {what}" if path else f"the body: {what}", param=path or None)


def check_native(tree: object, foreign: Mapping[str, str]) -> None:
    """Raises UnsupportedParameter for a field of another endpoint that says something; fields that no endpoint of
    OpenAI's has are passed over, as clients always have new ones."""
    if isinstance(tree, dict):
        for name, here in foreign.items():
            value = tree.get(name)
            if value is not False and value not in _NOTHING:
                raise UnsupportedParameter(f"`{name}` is no field of this endpoint; send {here}", param=name)


def check_served(request: GenerationOptions | PoolingOptions) -> None:
    """Raises UnsupportedParameter for a field of ``unserved`` that asks for something."""
    for name, idle in request.unserved.items():
        value = getattr(request, name)
        if value is not None and value not in idle:
            hint = f"; send {INSTEAD[name]}" if name in INSTEAD else ""
            raise UnsupportedParameter(f"`{name}` is not supported yet{hint}", param=name)
    if isinstance(request, GenerationOptions) and request.stream_options is not None and not request.stream:
        raise InvalidRequest("`stream_options` needs `stream`", param="stream_options")
