"""Every field that a request may have: ``python -m recipes.fields`` writes docs/fields.md.

Types, ranges and what is refused come from the classes by which requests are decoded, words from docs/fields.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from inspect import get_annotations
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, inspect

from llamafast.api.adapters import LoadRequest, UnloadRequest
from llamafast.api.chat.schema import ChatRequest
from llamafast.api.messages.schema import CountTokensRequest, MessagesRequest
from llamafast.api.native.schema import CompletionBody, InfillBody
from llamafast.api.responses.frames import ResponseCreate
from llamafast.api.responses.schema import ResponsesRequest
from llamafast.api.routes import CHAT, RENDER_CHAT, RENDER_COMPLETION, RERANK, TRANSCRIPTIONS, TRANSLATIONS
from llamafast.api.schema.completions import CompletionRequest
from llamafast.api.schema.embeddings import EmbeddingsRequest, RerankRequest, ScoreRequest
from llamafast.api.schema.fragments import INSTEAD, GenerationOptions, LoraScale, SamplingOptions
from llamafast.api.schema.tokens import DetokenizeRequest, TokenizeRequest
from llamafast.api.transcription.schema import TranscriptionRequest
from llamafast.engine.types import SamplingParams
from llamafast.pool.asked import Asked

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "fields.md"
WORDS = DOCS / "fields.toml"

HEAD = """# Every request field

`python -m recipes.fields` writes this page of the schemas by which requests are read, and `make test` sees that it is
theirs.

Null is the default wherever a field may be left out. A type or range that is not kept to is a 400 that names the field,
and so is a key that is there twice, or one thing that has two values under two names (`max_tokens`, `n_predict`).
What is refused is refused where it says something: null is taken, and what asks for nothing.

What is not on this page: names of other servers are in [foreign-fields.md](foreign-fields.md), each with what becomes
of it; a name that is nearly one of these is refused with it; any other is told in the log and in a header.
"""
SAMPLING = """## Sampling

All endpoints that generate take these. What a request leaves out has the value that the GGUF recommends
(`general.sampling.*`), else this default. OpenAI's temperature is 1: a client that relies on it has to send it.
`GET /props` tells what holds for the model that is served.
"""
TAIL = """## Over a WebSocket

Each frame is what `POST /v1/responses` takes, and

{socket}

## With several models

Beside its own fields every body may have

{pool}

`POST /models/load` and `/models/unload` take `model` alone.

## In a path

| parameter | of | |
|---|---|---|
| `model` | whatever has no body that names one, with several models | which one |
| `limit`, `order`, `after` | `GET /v1/responses/{id}/input_items` | 1 to 100 (20), `desc` or `asc`, behind which item |
| `limit`, `after_id`, `before_id` | `GET /v1/models`, Anthropic's form | 1 to 1000 (20), behind or before which |
| `fail_on_no_slot` | `GET /slots` | 503 where no sequence is free |

## In the head

| header | |
|---|---|
| `Authorization: Bearer`, `x-api-key` | [the key](security.md#keys) |
| `x-request-id` | comes back, and stands in the log; without it SGLang's `rid` in a body does, or one of the server's |
| `traceparent`, `tracestate` | its [trace](traces.md#a-span); the first comes back, and stands in the log |
| `anthropic-version` | of `GET /v1/models`: Anthropic's form; elsewhere, like `anthropic-beta`, any will do |
"""
COMMON = """## Generation

All endpoints that generate take these too, unless they are refused there.
"""
EVERYWHERE = "Refused by all that do not list it:"


class Endpoint(NamedTuple):
    """``beside``: what else it takes; ``only``: the names of its class that mean something."""

    paths: tuple[str, ...]
    schema: type[Struct]
    beside: str = ""
    only: tuple[str, ...] = ()


_GENERATES = "Beside [sampling](#sampling) and [generation](#generation):"
ENDPOINTS = (
    Endpoint(CHAT, ChatRequest, _GENERATES),
    Endpoint(("/v1/completions",), CompletionRequest, _GENERATES),
    Endpoint(
        ("/v1/responses", "/responses", "/v1/responses/input_tokens", "/v1/responses/compact"), ResponsesRequest,
        f"Over a WebSocket too. {_GENERATES}",
    ),
    Endpoint(("/v1/messages",), MessagesRequest, _GENERATES),
    Endpoint(("/v1/messages/count_tokens",), CountTokensRequest, "The same, without a length.", ("max_tokens",)),
    Endpoint(("/completion", "/completions"), CompletionBody, _GENERATES),
    Endpoint(("/infill",), InfillBody, _GENERATES),
    Endpoint((TRANSCRIPTIONS, TRANSLATIONS), TranscriptionRequest, "A form (`multipart/form-data`) with a `file`."),
    Endpoint(("/v1/embeddings",), EmbeddingsRequest),
    Endpoint(RERANK, RerankRequest),
    Endpoint(("/v1/score",), ScoreRequest),
    Endpoint(("/apply-template",), ChatRequest, "What chats take; the answer is the prompt.", ("messages",)),
    Endpoint(RENDER_CHAT, ChatRequest, "What chats take; the answer has the prompt's token ids.", ("messages",)),
    Endpoint((RENDER_COMPLETION,), CompletionRequest, "What completions take; each prompt's ids.", ("prompt",)),
    Endpoint(
        ("/tokenize",), TokenizeRequest, "One of `content`, `prompt` and `messages`.",
        ("model", *TokenizeRequest.__annotations__),
    ),
    Endpoint(("/detokenize",), DetokenizeRequest, "", ("model", "tokens")),
    Endpoint(("/lora-adapters",), LoraScale, "A list of objects:"),
    Endpoint(("/v1/load_lora_adapter",), LoadRequest),
    Endpoint(("/v1/unload_lora_adapter",), UnloadRequest),
)  # fmt: skip
# Whose fields stand once for all.
_SHARED = (SamplingOptions, GenerationOptions)


class Missing(Exception):
    """A field without a line, or a line without a field."""


class Words:
    """The lines of fields.toml, each of which has to be used."""

    def __init__(self, text: str) -> None:
        self._lines: dict[str, dict[str, str]] = tomllib.loads(text)
        self._used: set[tuple[str, str]] = set()

    def of(self, owner: type, name: str) -> str:
        """Raises Missing."""
        if name not in self._lines.get(owner.__name__, {}):
            raise Missing(
                f"docs/fields.toml: [{owner.__name__}] has no line for `{name}`; then python -m recipes.fields"
            )
        self._used.add((owner.__name__, name))
        return self._lines[owner.__name__][name]

    def check(self) -> None:
        """Raises Missing for lines that nobody asked for."""
        rest = {(owner, name) for owner, lines in self._lines.items() for name in lines} - self._used
        if rest:
            raise Missing(f"docs/fields.toml: no field is {', '.join(sorted(map('.'.join, rest)))}")


def page(words: str) -> str:
    """docs/fields.md. Raises Missing."""
    lines = Words(words)
    parts = [HEAD, SAMPLING, _sampling(lines), COMMON, _table(GenerationOptions, lines, own=GenerationOptions)]
    parts.append(f"{EVERYWHERE} {_list_refused(GenerationOptions.unserved)}.")
    for endpoint in ENDPOINTS:
        parts += _section(endpoint, lines)
    socket = _table(ResponseCreate, lines, only=tuple(ResponseCreate.__annotations__))
    pool = _table(Asked, lines, only=("keep_alive", "ttl"))
    parts.append(TAIL.replace("{socket}", socket).replace("{pool}", pool))
    lines.check()
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def _section(endpoint: Endpoint, lines: Words) -> list[str]:
    first, *others = endpoint.paths
    also = f"Also {', '.join(f'`{path}`' for path in others)}." if others else ""
    schema = endpoint.schema
    parts = [f"## POST {first}", " ".join(filter(None, (also, endpoint.beside)))]
    parts.append(_table(schema, lines, only=endpoint.only))
    if endpoint.only:
        return parts
    everywhere = GenerationOptions.unserved if issubclass(schema, GenerationOptions) else {}
    refused = {name: idle for name, idle in getattr(schema, "unserved", {}).items() if everywhere.get(name) != idle}
    if refused:
        parts.append(f"Refused{' too' if everywhere else ''}: {_list_refused(refused)}.")
    foreign = getattr(schema, "foreign", {})
    if foreign:
        by_hint: dict[str, list[str]] = {}
        for name, here in foreign.items():
            by_hint.setdefault(here, []).append(f"`{name}`")
        told = "; ".join(f"{', '.join(names)}: send {here}" for here, names in by_hint.items())
        parts.append(f"Of other endpoints: {told}.")
    return parts


def _list_refused(refused: Mapping[str, tuple[object, ...]]) -> str:
    return ", ".join(_refused(name, idle) for name, idle in refused.items())


def _refused(name: str, idle: tuple[object, ...]) -> str:
    values = [value for value in idle if value not in (False, "", 0) and value != [] and value != {}]
    other = f" other than {', '.join(f'`{msgspec.json.encode(value).decode()}`' for value in values)}" if values else ""
    return f"`{name}`{other}{f' (send {INSTEAD[name]})' if name in INSTEAD else ''}"


def _sampling(lines: Words) -> str:
    """With the default of each, which stands in SamplingParams under the same name or the one that it is short for."""
    defaults = SamplingParams()
    renamed = {"repeat_penalty": "repetition_penalty", "repeat_last_n": "penalty_last_n"}
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for field in _fields(SamplingOptions):
        default = getattr(defaults, renamed.get(field.name, field.name))
        told = "another each time" if field.name == "seed" else _json(default)
        rows.append(f"| `{field.name}` | {_type(field.type)} | {told} | {lines.of(SamplingOptions, field.name)} |")
    return "\n".join(rows)


def _json(value: object) -> str:
    return f"`{msgspec.json.encode(value).decode()}`"


def _table(schema: type[Struct], lines: Words, *, own: type | None = None, only: tuple[str, ...] = ()) -> str:
    """What ``schema`` takes: of ``own`` alone, or all but what stands in the shared tables."""
    refused = getattr(schema, "unserved", {})
    rows = ["| field | type | |", "|---|---|---|"]
    for field in _fields(schema):
        owner = _owner(schema, field.name)
        shared = owner in _SHARED and (owner is SamplingOptions or field.name not in owner.unserved)
        if only:
            if field.name not in only:
                continue
        elif field.name in refused or (own is not None and owner is not own) or (own is None and shared):
            continue
        rows += _rows(field, lines.of(owner, field.name), lines, field.name)
    return "\n".join(rows) if len(rows) > 2 else ""


def _rows(field: inspect.Field, words: str, lines: Words, path: str) -> list[str]:
    required = "required; " if field.required else ""
    rows = [f"| `{path}` | {required}{_type(field.type)} | {words} |"]
    for at, struct in _structs(field.type, path):
        for inner in _fields(struct):
            told = lines.of(_owner(struct, inner.name), inner.name)
            rows += _rows(inner, told, lines, f"{at}.{inner.name}") if told else []
    return rows


def _fields(schema: type[Struct]) -> tuple[inspect.Field, ...]:
    found = inspect.type_info(schema)
    assert isinstance(found, inspect.StructType)
    return found.fields


def _owner(schema: type[Struct], name: str) -> Any:
    """The class that declares the field, as it holds for ``schema``."""
    return next(one for one in schema.__mro__ if name in get_annotations(one))


def _structs(kind: inspect.Type, path: str) -> list[tuple[str, type[Struct]]]:
    """The classes of objects within, and what the path of their fields begins with."""
    if isinstance(kind, inspect.StructType):
        return [(path, kind.cls)]
    if isinstance(kind, inspect.UnionType):
        return [found for one in kind.types for found in _structs(one, path)]
    return _structs(kind.item_type, f"{path}[]") if isinstance(kind, inspect.ListType) else []


def _type(kind: inspect.Type) -> str:
    match kind:
        case inspect.UnionType(types=kinds):
            told = [_type(one) for one in kinds if not isinstance(one, inspect.NoneType)]
            return " or ".join(dict.fromkeys(told))
        case inspect.Metadata(type=inner):
            return _type(inner)
        case inspect.BoolType():
            return "boolean"
        case inspect.IntType():
            return f"integer{_range(kind)}"
        case inspect.FloatType():
            return f"number{_range(kind)}"
        case inspect.StrType():
            least = "at most" if kind.min_length is None else f"{kind.min_length} to"
            return "string" + (f" of {least} {kind.max_length} characters" if kind.max_length else "")
        case inspect.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in values)
        case inspect.ListType(item_type=item, max_length=most):
            return f"list of {f'at most {most} ' if most else ''}{_many(_type(item))}"
        case inspect.TupleType(item_types=items):
            return f"pair of ({') and ('.join(map(_type, items))})"
        case inspect.AnyType():
            return "anything"
        case _:
            return "object" + (f" of at most {most}" if (most := getattr(kind, "max_length", None)) else "")


def _many(name: str) -> str:
    return {"string": "strings", "object": "objects", "integer": "integers"}.get(
        name, f"({name})" if " " in name else name
    )


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    low, high = kind.ge, kind.le
    if low is None:
        return ""
    if high is None or high >= 2**31 - 1:
        return "" if low < -(2**30) else f" from {low}"
    return f" from {_short(low)} to {_short(high)}"


def _short(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def main() -> None:
    PAGE.write_text(page(WORDS.read_text()))


if __name__ == "__main__":
    main()
