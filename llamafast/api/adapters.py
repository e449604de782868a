"""GET and POST /lora-adapters, as llama-server has them: which adapters there are, and what everybody has of them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from llamafast.api.decode import convert, parse
from llamafast.api.http import Exchange
from llamafast.api.schema.fragments import MAX_LORAS, LoraScale
from llamafast.engine.types import EnginePort

_DECODER = msgspec.json.Decoder(Annotated[list[LoraScale], Meta(max_length=MAX_LORAS)])


class LoraAdapter(Struct, kw_only=True, omit_defaults=True):
    """``name`` is ours: what a request asks for as its model."""

    id: int
    path: str
    scale: float
    name: str | None = None


class AdapterEndpoints:
    def __init__(self, engine: EnginePort) -> None:
        self._engine = engine

    async def listed(self, exchange: Exchange) -> None:
        found = self._engine.adapters.listed()
        await exchange.reply_json([LoraAdapter(id=a.id, path=a.path, scale=a.scale, name=a.name) for a in found])

    async def apply(self, exchange: Exchange, body: bytes) -> None:
        """From now on who does not choose has these, and no others; requests that wait keep what they came for."""
        chosen = convert(parse(body), _DECODER)
        self._engine.adapters.apply({one.id: one.scale for one in chosen})
        await exchange.reply_json({"success": True})
