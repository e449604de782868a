"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from uuid import uuid4

import msgspec

from llamafast.api.chat_frames import ChatFrames, finish_on_wire
from llamafast.api.decode import decode_request
from llamafast.api.delivery import read_replies, run_sized, stream, usage_of
from llamafast.api.grammars import Grammars
from llamafast.api.http import Exchange
from llamafast.api.logprobs import TokenNames, chat_logprobs
from llamafast.api.schema.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    FunctionCall,
    MessageToolCall,
)
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import plan_chat
from llamafast.chat.reply import Delta, Message, Reply, ReplyFinish, assemble
from llamafast.engine.types import EnginePort, Generation, TokenLogprob

_DECODER = msgspec.json.Decoder(ChatRequest)


class ChatEndpoint:
    def __init__(self, engine: EnginePort, chat: ChatFormat, grammars: Grammars, ping_seconds: float) -> None:
        self._engine = engine
        self._chat = chat
        self._grammars = grammars
        self._ping_seconds = ping_seconds

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        engine = self._engine
        request = await run_sized(len(body), decode_request, _DECODER, body, engine.info)
        plan = await run_sized(len(body), plan_chat, request, self._chat, engine.tokenizer, engine.info)
        await engine.prepare(plan.plan)
        constrained = await self._grammars.constrained(plan.plan, plan.ask)
        generation = exchange.follow(engine.submit(constrained))
        replies = plan.replies()
        names = TokenNames(request, engine.tokenizer)
        try:
            reply_id, created = f"chatcmpl-{uuid4().hex}", int(time.time())
            if request.stream:
                chunk = ChatChunk(id=reply_id, created=created, model=self._engine.info.id, choices=[])
                frames = ChatFrames(chunk, replies, request, names)
                await stream(exchange, generation, frames, self._ping_seconds)
                return
            reply = ChatCompletion(
                id=reply_id,
                created=created,
                model=self._engine.info.id,
                choices=await _choices(generation, replies, request, names),
                usage=usage_of(generation, replies),
            )
            await exchange.reply_json(reply)
        finally:
            generation.cancel()


async def _choices(
    generation: Generation, replies: list[Reply], request: ChatRequest, names: TokenNames
) -> list[ChatChoice]:
    legacy = bool(request.functions)
    logprobs: list[list[TokenLogprob]] = [[] for _ in replies]
    deltas: list[list[Delta]] = [[] for _ in replies]
    finished: dict[int, ReplyFinish] = {}
    async for parts in read_replies(generation, replies):
        for part in parts:
            deltas[part.choice] += part.deltas
            logprobs[part.choice] += part.logprobs
            if part.finish_reason is not None:
                finished[part.choice] = part.finish_reason
    return [
        ChatChoice(
            index,
            _message(assemble(said), legacy),
            finish_on_wire(finished[index], legacy),
            chat_logprobs(logprobs[index], names) if request.logprobs else None,
        )
        for index, said in enumerate(deltas)
    ]


def _message(said: Message, legacy: bool) -> ChatMessage:
    message = ChatMessage(said.content if said.content or not said.tool_calls else None)
    if said.reasoning:
        message.reasoning_content = said.reasoning
    calls = [MessageToolCall(call.id, FunctionCall(call.name, call.arguments)) for call in said.tool_calls]
    if calls and legacy:
        message.function_call = calls[0].function
    elif calls:
        message.tool_calls = calls
    return message
