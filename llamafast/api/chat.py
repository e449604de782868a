"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import msgspec
from msgspec import UNSET

from llamafast.api.decode import decode_request
from llamafast.api.delivery import collect, run_sized, stream, usage_of
from llamafast.api.http import Exchange
from llamafast.api.schema.chat import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    ChatRequest,
)
from llamafast.api.schema.fragments import Usage
from llamafast.api.sse import HOLE, encode, frame, frame_pieces
from llamafast.chat.plan import plan_chat
from llamafast.chat.template import ChatTemplate
from llamafast.engine.types import EnginePort, FinishReason, Plan

_DECODER = msgspec.json.Decoder(ChatRequest)


class ChatEndpoint:
    """Raises ConfigError at construction when the model's chat template does not compile."""

    def __init__(self, engine: EnginePort, ping_seconds: float) -> None:
        info = engine.info
        self._engine = engine
        self._ping_seconds = ping_seconds
        self._template = (
            None if info.chat_template is None else ChatTemplate(info.chat_template, info.bos_text, info.eos_text)
        )

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        request, plan = await run_sized(len(body), self._prepare, body)
        generation = self._engine.submit(plan)
        try:
            reply_id, created = f"chatcmpl-{uuid4().hex}", int(time.time())
            if request.stream:
                chunk = ChatChunk(id=reply_id, created=created, model=self._engine.info.id, choices=[])
                await stream(exchange, generation, ChatFrames(chunk, plan.n, request.wants_usage), self._ping_seconds)
                return
            answers = await collect(generation, plan.n)
            reply = ChatCompletion(
                id=reply_id,
                created=created,
                model=self._engine.info.id,
                choices=[
                    ChatChoice(index, ChatMessage(answer.text), answer.finish_reason)
                    for index, answer in enumerate(answers)
                ],
                usage=usage_of(generation),
            )
            await exchange.reply_json(reply)
        finally:
            generation.cancel()

    def _prepare(self, body: bytes) -> tuple[ChatRequest, Plan]:
        request = decode_request(_DECODER, body, self._engine.info)
        return request, plan_chat(request, self._template, self._engine.tokenizer, self._engine.info)


class ChatFrames:
    """The pieces of a streamed chat reply (``api.sse.Frames``); ``chunk`` is what all its chunks have in common."""

    def __init__(self, chunk: ChatChunk, n: int, wants_usage: bool) -> None:
        self._chunk_without_choices = msgspec.structs.replace(chunk, usage=None if wants_usage else UNSET)
        self._n = n
        self._wants_usage = wants_usage
        pieces = frame_pieces(self._chunk(ChatChunkChoice(HOLE, ChatDelta(content=HOLE))))
        self._before, self._between, self._after = pieces

    def opening(self) -> Iterator[bytes]:
        role = ChatDelta(role="assistant", content="", refusal=None)
        yield b"".join(frame(self._chunk(ChatChunkChoice(index, role))) for index in range(self._n))

    def text(self, index: int, text: str) -> bytes:
        return b"%b%d%b%b%b" % (self._before, index, self._between, encode(text), self._after)

    def finish(self, index: int, reason: FinishReason) -> bytes:
        return frame(self._chunk(ChatChunkChoice(index, ChatDelta(), reason)))

    def closing(self, usage: Usage) -> bytes:
        return frame(msgspec.structs.replace(self._chunk_without_choices, usage=usage)) if self._wants_usage else b""

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        return msgspec.structs.replace(self._chunk_without_choices, choices=[choice])
