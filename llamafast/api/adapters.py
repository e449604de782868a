"""Adapters on the wire: GET and POST /lora-adapters, as llama-server has them, and vLLM's /v1/load_lora_adapter and
/v1/unload_lora_adapter."""

from __future__ import annotations

import asyncio
from array import array
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from llamafast.api.decode import convert, parse
from llamafast.api.delivery import run_sized
from llamafast.api.fields import read_fields
from llamafast.api.http import Exchange
from llamafast.api.schema.fragments import LoraScale, LoraScales, Scale, pairs_of
from llamafast.engine.adapter_info import AdapterInfo
from llamafast.engine.types import EnginePort, Tokenizer
from llamafast.errors import ConfigError, InvalidRequest, PermissionDenied

Name = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
RequestT = TypeVar("RequestT", bound=Struct)
_DECODER = msgspec.json.Decoder(LoraScales)


class LoraAdapter(Struct, kw_only=True, omit_defaults=True):
    """``name`` is ours: what a request asks for as its model. The others are told where the file has them."""

    id: int
    path: str
    scale: float
    name: str | None = None
    task_name: str = ""
    prompt_prefix: str = ""
    alora_invocation_string: str = ""
    alora_invocation_tokens: tuple[int, ...] = ()


class LoadRequest(Struct, kw_only=True):
    """``lora_path`` is of a GGUF in ``server.lora_dir``, relative to it or absolute. ``scale`` is ours."""

    lora_name: Name
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]
    scale: Scale = 1.0
    load_inplace: bool = False


class UnloadRequest(Struct, kw_only=True):
    lora_name: Name


_LOAD = msgspec.json.Decoder(LoadRequest)
_UNLOAD = msgspec.json.Decoder(UnloadRequest)


class AdapterEndpoints:
    """Files come from ``folder``, if from anywhere. Raises ConfigError for one that is none."""

    def __init__(self, engine: EnginePort, folder: str | None) -> None:
        self._engine = engine
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None and not self._folder.is_dir():
            raise ConfigError(f"server.lora_dir: {self._folder.absolute()} is no directory")

    async def listed(self, exchange: Exchange) -> None:
        await exchange.reply_json([self._told(one) for one in self._engine.adapters.listed()])

    def _told(self, adapter: AdapterInfo) -> LoraAdapter:
        return LoraAdapter(
            id=adapter.id,
            path=adapter.path,
            scale=adapter.scale,
            name=adapter.name,
            task_name=adapter.task_name,
            prompt_prefix=adapter.prompt_prefix,
            alora_invocation_string=invocation_text(adapter, self._engine.tokenizer),
            alora_invocation_tokens=adapter.invocation,
        )

    async def apply(self, exchange: Exchange, body: bytes) -> None:
        """From now on who does not choose has these, and no others; requests that wait keep what they came for."""
        chosen: list[LoraScale] = convert(await run_sized(len(body), parse, body), _DECODER)
        self._engine.adapters.apply(pairs_of(chosen))
        await exchange.reply_json({"success": True})

    async def load(self, exchange: Exchange, body: bytes) -> None:
        request = await _read(_LOAD, body, exchange)
        if request.load_inplace:
            raise InvalidRequest("`load_inplace` is not supported: unload the adapter first", param="load_inplace")
        path = await asyncio.to_thread(self._path_of, request.lora_path)
        await self._engine.adapters.load(request.lora_name, path, request.scale)
        await exchange.reply_json({"success": True, "lora_name": request.lora_name})

    async def unload(self, exchange: Exchange, body: bytes) -> None:
        request = await _read(_UNLOAD, body, exchange)
        await self._engine.adapters.unload(request.lora_name)
        await exchange.reply_json({"success": True, "lora_name": request.lora_name})

    def _path_of(self, asked: str) -> Path:
        """Raises PermissionDenied, with one sentence for a file that is missing and one that is elsewhere."""
        if self._folder is None:
            raise PermissionDenied("adapters are loaded from `server.lora_dir`, and the config has none")
        try:
            path = (self._folder / asked).resolve(strict=True)
            if path.is_file() and path.is_relative_to(self._folder.resolve()):
                return path
        except (OSError, ValueError, RuntimeError):
            pass
        raise PermissionDenied("`lora_path` is no file in `server.lora_dir`", param="lora_path")


def invocation_text(adapter: AdapterInfo, tokenizer: Tokenizer) -> str:
    """What a prompt has to have for an activated adapter, "" for others."""
    return tokenizer.detokenize(array("i", adapter.invocation)) if adapter.invocation else ""


async def _read(decoder: msgspec.json.Decoder[RequestT], body: bytes, exchange: Exchange) -> RequestT:
    """Raises InvalidRequest."""
    tree, renamed = read_fields(await run_sized(len(body), parse, body), decoder.type, exchange)
    return convert(tree, decoder, renamed)
