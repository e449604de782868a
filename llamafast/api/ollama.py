"""What clients of Ollama ask to find models: GET /api/version, GET /api/tags, POST /api/show. Nothing else of its API.

They chat by /v1/chat/completions then. What is told of a model is what /v1/models tells of it, in Ollama's words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from msgspec import Struct
from msgspec.json import Decoder

from llamafast.api.decode import convert, parse
from llamafast.api.delivery import run_sized
from llamafast.api.http import Exchange, WireForm
from llamafast.api.routes import Endpoint, Route, get
from llamafast.errors import InvalidRequest

VERSION, TAGS, SHOW = PATHS = ("/api/version", "/api/tags", "/api/show")
# Of Ollama's API; older ones are refused by clients.
API_VERSION = "0.6.4"

OLLAMA = WireForm(lambda error, _: (error.status, {"error": error.message}), (b"x-request-id",))

Entry = Mapping[str, Any]  # of /v1/models


class Details(Struct):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(Struct):
    """``digest`` is another one where the model is; it is not that of its file."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Shown(Struct):
    template: str
    details: Details
    model_info: dict[str, str | int]
    capabilities: list[str]
    modified_at: str


class ShowRequest(Struct):
    """``name`` is what older clients call it."""

    model: str | None = None
    name: str | None = None


_SHOW = Decoder(ShowRequest)


def ollama_routes(entries: Callable[[], Iterable[Entry]], show: Endpoint) -> Iterator[Route]:
    """``entries`` are those of /v1/models, ``show`` answers POST /api/show."""

    async def tags(exchange: Exchange) -> None:
        await exchange.reply_json({"models": [tag_of(entry) for entry in entries()]})

    yield Route(VERSION, get(_reply_version), form=OLLAMA)
    yield Route(TAGS, get(tags), form=OLLAMA)
    yield Route(SHOW, {"POST": show}, form=OLLAMA)


async def named_in(body: bytes, exchange: Exchange) -> str:
    """The model that POST /api/show asks for. Raises InvalidRequest."""
    asked = convert(await run_sized(len(body), parse, body), _SHOW)
    exchange.model = asked.model or asked.name or ""
    if not exchange.model:
        raise InvalidRequest("`model` is required", param="model")
    return exchange.model


def tag_of(entry: Entry) -> Tag:
    name, meta = entry["id"], entry.get("meta", {})
    size = meta.get("size", 0)
    facts = repr((name, size, meta.get("n_params", 0), entry.get("quantization"), entry.get("arch")))
    return Tag(name, name, _time(entry), size, sha256(facts.encode()).hexdigest(), _details(entry))


def shown(entry: Entry, template: str) -> Shown:
    """Of a model that has never been loaded little is known, and nothing is guessed."""
    meta, arch = entry.get("meta", {}), entry.get("arch", "")
    known: dict[str, str | int | None] = {
        "general.architecture": arch or None,
        "general.basename": entry["id"],
        "general.parameter_count": meta.get("n_params"),
        f"{arch}.context_length": entry.get("context_length") if arch else None,
        f"{arch}.embedding_length": meta.get("n_embd") if arch else None,
    }
    info = {name: value for name, value in known.items() if value is not None}
    return Shown(template, _details(entry), info, entry.get("capabilities", []), _time(entry))


async def _reply_version(exchange: Exchange) -> None:
    await exchange.reply_json({"version": API_VERSION})


def _details(entry: Entry) -> Details:
    arch = entry.get("arch", "")
    n_params = entry.get("meta", {}).get("n_params", 0)
    families = [arch] if arch else []
    return Details(entry.get("parent") or "", "gguf", arch, families, _short(n_params), entry.get("quantization", ""))


def _short(n: int) -> str:
    """134.52M, 7.62B; "" for a number that is not known."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size:
            return f"{n / size:.2f}{unit}"
    return str(n) if n else ""


def _time(entry: Entry) -> str:
    return datetime.fromtimestamp(entry["created"], UTC).isoformat().replace("+00:00", "Z")
