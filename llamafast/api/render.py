"""POST /v1/chat/completions/render, /v1/completions/render: a prompt's token ids, as vLLM tells them to routers.

A router hashes them as it does those of events, and so knows who has the prompt. Nothing is queued.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from uuid import uuid4

import msgspec
from msgspec import Struct

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.decode import decode_request
from llamafast.api.delivery import run_sized
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.schema.completions import CompletionRequest
from llamafast.api.sse import encode
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import plan_chat, plan_completion, plan_infill
from llamafast.engine.types import EnginePort
from llamafast.errors import UnsupportedParameter

_CHAT = msgspec.json.Decoder(ChatRequest)
_COMPLETION = msgspec.json.Decoder(CompletionRequest)


class Rendered(Struct):
    """One prompt."""

    token_ids: list[int]
    model: str
    request_id: str


class RenderEndpoints:
    def __init__(self, engine: EnginePort, chat: ChatFormat) -> None:
        self._engine = engine
        self._chat = chat

    async def chat(self, exchange: Exchange, body: bytes) -> None:
        """One object."""
        await exchange.reply(200, await run_sized(len(body), self._rendered_chat, exchange, body), JSON_TYPE)

    async def completion(self, exchange: Exchange, body: bytes) -> None:
        """A list with one for each prompt."""
        await exchange.reply(200, await run_sized(len(body), self._rendered_prompts, exchange, body), JSON_TYPE)

    def _rendered_chat(self, exchange: Exchange, body: bytes) -> bytes:
        info = self._engine.info
        request = decode_request(_CHAT, body, info, exchange)
        parts = self._chat.media_parts(info.modalities)
        request.messages = parts.messages(request.messages)
        if parts.sources:
            raise UnsupportedParameter("media have no tokens to be told", param=parts.sources[0].path)
        plan = plan_chat(request.task(), self._chat, self._engine.tokenizer, info).plan
        (rendered,) = self._rendered(plan.prompts, request.model, "chatcmpl")
        return encode(rendered)

    def _rendered_prompts(self, exchange: Exchange, body: bytes) -> bytes:
        engine = self._engine
        request = decode_request(_COMPLETION, body, engine.info, exchange)
        if (infill := request.infill()) is not None:
            plan, _ = plan_infill(infill, engine.tokenizer, engine.info)
        else:
            plan, _ = plan_completion(request.task(), engine.tokenizer, engine.info)
        return encode(self._rendered(plan.prompts, request.model, "cmpl"))

    def _rendered(self, prompts: Iterable[array[int]], model: str | None, kind: str) -> list[Rendered]:
        return [Rendered(ids.tolist(), model or self._engine.info.id, f"{kind}-{uuid4().hex}") for ids in prompts]
