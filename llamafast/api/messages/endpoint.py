"""POST /v1/messages and /v1/messages/count_tokens, from the body to the reply: planned, submitted, streamed or told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TypeVar
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from llamafast.api.decode import decode_request
from llamafast.api.delivery import read_replies, run_sized, usage_of
from llamafast.api.fields import note
from llamafast.api.grammars import Grammars
from llamafast.api.hidden_tools import ignored
from llamafast.api.http import JSON_TYPE, Exchange, Headers
from llamafast.api.messages.blocks import in_request
from llamafast.api.messages.errors import ANTHROPIC_STREAM
from llamafast.api.messages.plan import MessagePlanner
from llamafast.api.messages.schema import (
    CountTokensRequest,
    Event,
    Message,
    MessagesRequest,
    StopReason,
    TokenCount,
    Usage,
)
from llamafast.api.messages.writer import MessageWriter
from llamafast.api.sse import EventStream, encode
from llamafast.chat.reply.reader import Reply, ReplyFinish
from llamafast.engine.types import EnginePort, Generation, ModelInfo

RequestT = TypeVar("RequestT", bound=CountTokensRequest)

_MESSAGES = msgspec.json.Decoder(MessagesRequest)
_COUNT = msgspec.json.Decoder(CountTokensRequest)


class MessagesEndpoint:
    def __init__(self, engine: EnginePort, planner: MessagePlanner, grammars: Grammars, ping_seconds: float) -> None:
        self._engine = engine
        self._planner = planner
        self._grammars = grammars
        self._ping_seconds = ping_seconds

    async def create(self, exchange: Exchange, body: bytes) -> None:
        engine = self._engine
        request = await self._decoded(exchange, body, _MESSAGES)
        planned = await self._planner.planned(request, len(body), exchange.tenant)
        note(planned.plan.unread, exchange)
        await engine.prepare(planned.plan.plan)
        plan = await self._grammars.constrained(planned.plan.plan, planned.plan.ask)
        plan = replace(plan, announce=bool(request.stream) and not plan.media)
        generation = exchange.follow(engine.submit(plan, exchange.tenant))
        telling = Telling(request, generation, planned.plan.replies(), engine.info)
        exchange.response_id = telling.message.id
        try:
            if request.stream:
                await self._stream(exchange, telling, ignored(planned.hidden))
                return
            async for _ in telling.events():
                pass
            reply = await run_sized(telling.n_bytes, encode, telling.message)
            await exchange.reply(200, reply, JSON_TYPE, ignored(planned.hidden))
        finally:
            generation.cancel()

    async def count_tokens(self, exchange: Exchange, body: bytes) -> None:
        """How many tokens the prompt of such a message has, also where they do not fit."""
        request = await self._decoded(exchange, body, _COUNT)
        planned = await self._planner.planned(request, len(body), exchange.tenant, only_counted=True)
        note(planned.plan.unread, exchange)
        await exchange.reply_json(TokenCount(planned.n_prompt), headers=ignored(planned.hidden))

    async def _stream(self, exchange: Exchange, telling: Telling, headers: Headers) -> None:
        # what goes wrong before anything is known is told by the status, by which clients try again
        await telling.generation.begin(self._ping_seconds)
        async with EventStream(exchange, self._ping_seconds, headers, ANTHROPIC_STREAM) as stream:
            async for events in telling.events():
                await stream.write(await run_sized(32 * len(events), _frames, events))
            await stream.end(b"")

    async def _decoded(self, exchange: Exchange, body: bytes, decoder: msgspec.json.Decoder[RequestT]) -> RequestT:
        info = self._engine.info
        return await run_sized(len(body), decode_request, decoder, body, info, exchange, detach=in_request)


class Telling:
    """One message while it is generated: ``events`` tells it, ``message`` is what they said in the end."""

    def __init__(self, request: MessagesRequest, generation: Generation, replies: list[Reply], info: ModelInfo) -> None:
        self.generation = generation
        self.n_bytes = 0
        self._request = request
        self._replies = replies
        self._info = info
        message = Message(id=f"msg_{uuid4().hex[:24]}", model=request.model or info.id, content=[], usage=self._usage())
        self._writer = MessageWriter(message, omits_thinking=request.omits_thinking)

    @property
    def message(self) -> Message:
        return self._writer.message

    async def events(self) -> AsyncIterator[list[Event]]:
        """Batch by batch as they become known, the first one when it is known how much of the prompt was cached. Raises
        the LlamafastError that ended the generation."""
        writer = self._writer
        told: list[Event] | None = None
        async for parts in read_replies(self.generation, self._replies):
            told = writer.opening(self._usage()) if told is None else []
            for part in parts:
                self.n_bytes += sum(len(text) for delta in part.deltas if (text := getattr(delta, "text", "")))
                told += writer.add(part.deltas)
                if part.finish_reason is not None:
                    told += writer.closing(*self._ending(part.finish_reason, part.matched_stop), self._usage())
            if told:
                yield told

    def _usage(self) -> Usage:
        return Usage.of(usage_of(self.generation, self._replies))

    def _ending(self, finish: ReplyFinish, matched_stop: str | int | None) -> tuple[StopReason, str | None]:
        if finish == "tool_calls":
            return "tool_use", None
        if finish == "length":
            n_tokens = self.generation.completion_tokens
            full = self.generation.prompt_tokens + n_tokens >= self._info.max_seq_len
            if full and n_tokens < self._request.max_tokens:
                return "model_context_window_exceeded", None
            return "max_tokens", None
        return ("stop_sequence", matched_stop) if isinstance(matched_stop, str) else ("end_turn", None)


def _frames(events: Sequence[Event]) -> bytes:
    return b"".join([_frame(event) for event in events])


def _frame(event: Event) -> bytes:
    kind = type(event).__struct_config__.tag
    assert isinstance(kind, str)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode(event))
