"""JSON body → typed request, or an error that names the field at fault."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec

from llamafast.api.cut_body import cut
from llamafast.api.fields import check_twins, read_fields, says_nothing
from llamafast.api.media_texts import InRequest
from llamafast.api.record import Record
from llamafast.api.schema.embeddings import PoolingOptions
from llamafast.api.schema.fragments import INSTEAD, GenerationOptions
from llamafast.api.transcription.schema import TranscriptionRequest
from llamafast.config.fields import in_json_types
from llamafast.config.names import answers_to
from llamafast.engine.types import ModelInfo
from llamafast.errors import InvalidRequest, ModelNotFound, UnsupportedParameter

T = TypeVar("T")
_NOT_RENAMED: Mapping[str, str] = MappingProxyType({})
Request = TypeVar("Request", bound=GenerationOptions | PoolingOptions | TranscriptionRequest)

# A double has less than 800 significant digits.
MAX_NUMBER_CHARS = 1000
# Of what a field of the wrong type or range has in place of its value so much is told.
MAX_TOLD_CHARS = 256
# What of a request traces have.
NUMBERS = (
    "max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "n", "seed", "temperature",
    "top_k", "top_p", "frequency_penalty", "presence_penalty", "dimensions",
)  # fmt: skip
# What is searched in one call.
PIECE_BYTES = 1 << 20

_AT_PATH = re.compile(r"(?P<what>.*) - at `\$\.?(?P<path>[^`]*)`", re.DOTALL)
_NAME = re.compile(r"\w+")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")


def decode_request(
    decoder: msgspec.json.Decoder[Request],
    body: bytes,
    info: ModelInfo,
    record: Record,
    *,
    detach: InRequest | None = None,
) -> Request:
    """Decode and check all that needs neither model nor template. Texts that ``detach`` finds may be DetachedText; what
    the request names, and what of it is read by nothing, is noted in ``record``.

    Raises InvalidRequest (not JSON, a repeated key, a wrong type or range), UnknownParameter, UnsupportedParameter or
    ModelNotFound.
    """
    tree = parse(body) if detach is None else parse_cut(body, detach)
    return decode_tree(decoder, tree, info, record)


def decode_tree(
    decoder: msgspec.json.Decoder[Request], tree: object, info: ModelInfo, record: Record, *, from_form: bool = False
) -> Request:
    """The same for a JSON value, or for the fields of a form, which are texts whatever they mean."""
    if isinstance(tree, dict):
        record.says(tree)
    # first: who sends a field of another endpoint may lack one of this one's
    check_native(tree, decoder.type.foreign)
    tree, renamed = read_fields(tree, decoder.type, record)
    request = convert(tree, decoder, renamed, strict=not from_form)
    record.asked = {name: value for name in NUMBERS if (value := getattr(request, name, None)) is not None}
    if isinstance(request, (GenerationOptions, TranscriptionRequest)):
        record.stream = bool(request.stream)
    check_model(request.model, info)
    record.served = request.model if request.model and request.model in info.adapters else info.id
    check_served(request, renamed)
    check_twins(tree, request.twins(), renamed)
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


def convert(
    tree: object,
    decoder: msgspec.json.Decoder[T],
    renamed: Mapping[str, str] = _NOT_RENAMED,
    *,
    strict: bool = True,
) -> T:
    """What ``parse`` gave, as the type of ``decoder``; ``renamed`` are the names that the client has for fields. Where
    it is not ``strict`` numbers and booleans may be texts. Raises InvalidRequest: a wrong type or range."""
    try:
        converted: T = msgspec.convert(tree, decoder.type, strict=strict)
        return converted
    except msgspec.ValidationError as error:
        raise invalid_field(str(error), renamed) from error


def check_model(model: str | None, info: ModelInfo) -> None:
    """Raises ModelNotFound for a name that is none of the served model's and no adapter's; no name means that one."""
    if model and model != info.id and model not in info.adapters and not answers_to(model, info.aliases):
        names = ", ".join(map(repr, (info.id, *info.aliases, *info.adapters)))
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


def invalid_field(text: str, renamed: Mapping[str, str] = _NOT_RENAMED, whole: str = "the body") -> InvalidRequest:
    """What is wrong in ``whole``: msgspec's ``Expected … - at `$.path``` in the words of JSON and the client; for an
    object's values it writes ``[...]``."""
    at = _AT_PATH.fullmatch(text)
    what, path = (at["what"], at["path"].replace("[...]", "")) if at else (text, "")
    if missing := _MISSING.fullmatch(what):
        path = f"{path}.{missing['name']}".lstrip(".")
        return InvalidRequest(f"`{path}` is required", param=path)
    first = _NAME.match(path)
    if first and first[0] in renamed:
        path = renamed[first[0]] + path[first.end() :]
    what = f"{what[:MAX_TOLD_CHARS]}..." if len(what) > MAX_TOLD_CHARS else what
    what = in_json_types(what)
    what = what[:1].lower() + what[1:]
    return InvalidRequest(f"`{path}`: {what}" if path else f"{whole}: {what}", param=path or None)


def check_native(tree: object, foreign: Mapping[str, str]) -> None:
    """Raises UnsupportedParameter for a field of another endpoint that says something."""
    if isinstance(tree, dict):
        for name, here in foreign.items():
            if not says_nothing(tree.get(name)):
                raise UnsupportedParameter(f"`{name}` is no field of this endpoint; send {here}", param=name)


def check_served(
    request: GenerationOptions | PoolingOptions | TranscriptionRequest, renamed: Mapping[str, str] = _NOT_RENAMED
) -> None:
    """Raises UnsupportedParameter for a field of ``unserved`` that asks for something, by the client's name for it."""
    for name, idle in request.unserved.items():
        value = getattr(request, name)
        if value is not None and value not in idle:
            hint = f"; send {INSTEAD[name]}" if name in INSTEAD else ""
            said = renamed.get(name, name)
            raise UnsupportedParameter(f"`{said}` is not supported yet{hint}", param=said)
    if isinstance(request, GenerationOptions) and request.stream_options is not None and not request.stream:
        raise InvalidRequest("`stream_options` needs `stream`", param="stream_options")
    if isinstance(request, GenerationOptions) and request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest("`prompt_logprobs` does not go with `stream`", param="prompt_logprobs")
