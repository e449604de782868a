"""POST /v1/chat/completions, from the body to the reply: planned, submitted, streamed or collected."""

from __future__ import annotations

import time
from uuid import uuid4

import msgspec
from msgspec import UNSET, Struct

from llamafast.api.chat.frames import ChatFrames, finish_on_wire
from llamafast.api.chat.schema import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    FunctionCall,
    MessageToolCall,
)
from llamafast.api.decode import decode_request
from llamafast.api.delivery import read_replies, rows_size, run_sized, stream, tokens_size, usage_of
from llamafast.api.fields import note
from llamafast.api.grammars import Grammars
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from llamafast.api.measured import Measured
from llamafast.api.media_texts import in_chat
from llamafast.api.sse import encode
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import ChatPlan, plan_chat
from llamafast.chat.reply.deltas import AssistantMessage, Delta, assemble
from llamafast.chat.reply.reader import Reply, ReplyFinish
from llamafast.engine.media import MediaLoader, MediaSource, Medium
from llamafast.engine.types import EnginePort, Generation, TokenLogprob
from llamafast.errors import InvalidRequest

_DECODER = msgspec.json.Decoder(ChatRequest)


class ChatEndpoint:
    def __init__(
        self,
        engine: EnginePort,
        chat: ChatFormat,
        grammars: Grammars,
        ping_seconds: float,
        media: MediaLoader | None = None,
    ) -> None:
        self._media = media
        self._engine = engine
        self._chat = chat
        self._grammars = grammars
        self._ping_seconds = ping_seconds

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        engine = self._engine
        request = await run_sized(len(body), decode_request, _DECODER, body, engine.info, exchange, detach=in_chat)
        sources = await run_sized(len(body), self._media_of, request)
        media = await self._media.load(sources, exchange.tenant.salt) if sources and self._media is not None else []
        plan = await run_sized(len(body) + rows_size(media), self._plan, request, media, sources)
        note(plan.unread, exchange)
        await engine.prepare(plan.plan)
        constrained = await self._grammars.constrained(plan.plan, plan.ask)
        generation = exchange.follow(engine.submit(constrained, exchange.tenant))
        replies = plan.replies()
        measured = Measured(generation, request)
        names = TokenNames(request, engine.tokenizer, request.top_logprobs or 0)
        prompt_ids = constrained.prompts[0].tolist() if constrained.tell_tokens else UNSET
        try:
            reply_id, created = f"chatcmpl-{uuid4().hex}", int(time.time())
            exchange.response_id = reply_id
            if request.stream:
                chunk = ChatChunk(id=reply_id, created=created, model=request.model or engine.info.id, choices=[])
                frames = ChatFrames(chunk, replies, request, names, measured, prompt_ids)
                await stream(exchange, generation, frames, self._ping_seconds, request.top_logprobs or 0, replies)
                return
            said = await _said(generation, replies)
            reply = ChatCompletion(
                id=reply_id,
                created=created,
                model=request.model or engine.info.id,
                choices=[],
                usage=usage_of(generation, replies),
                prompt_token_ids=prompt_ids,
                timings=measured.wanted(),
            )
            # every token is a Delta or more to put together, with or without its log probability
            n_bytes = tokens_size(generation.completion_tokens, request.top_logprobs or 0)
            n_bytes += tokens_size(len(said[0].prompt_logprobs), request.prompt_logprobs or 0)
            body = await run_sized(n_bytes, _collected, reply, said, request, names)
            await exchange.reply(200, body, JSON_TYPE)
        finally:
            generation.cancel()

    def _media_of(self, request: ChatRequest) -> list[MediaSource]:
        """The media in the request's messages, which have words for them from here on."""
        parts = self._chat.media_parts(self._engine.info.modalities)
        request.messages = parts.messages(request.messages)
        return parts.sources

    def _plan(self, request: ChatRequest, media: list[Medium], sources: list[MediaSource]) -> ChatPlan:
        if request.top_logprobs and not request.logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs`", param="top_logprobs")
        request.check_echo()
        return plan_chat(request.task(media, sources), self._chat, self._engine.tokenizer, self._engine.info)


class CollectedChoice(Struct):
    """One choice, as far as it has come."""

    deltas: list[Delta] = []
    logprobs: list[TokenLogprob] = []
    finish_reason: ReplyFinish | None = None
    matched_stop: str | int | None = None
    token_ids: list[int] = []
    prompt_logprobs: list[TokenLogprob] = []


async def _said(generation: Generation, replies: list[Reply]) -> list[CollectedChoice]:
    said = [CollectedChoice() for _ in replies]
    async for parts in read_replies(generation, replies):
        for part in parts:
            choice = said[part.choice]
            choice.deltas += part.deltas
            choice.logprobs += part.logprobs
            choice.finish_reason = part.finish_reason or choice.finish_reason
            choice.matched_stop = part.matched_stop
            choice.token_ids += part.token_ids
            choice.prompt_logprobs += part.prompt_logprobs
    return said


def _collected(reply: ChatCompletion, said: list[CollectedChoice], request: ChatRequest, names: TokenNames) -> bytes:
    """The JSON of ``reply`` with the choices that were ``said``, encoded one by one."""
    legacy = bool(request.functions)
    choices = []
    for index, choice in enumerate(said):
        assert choice.finish_reason is not None
        choices.append(
            ChatChoice(
                index,
                _message(assemble(choice.deltas), request),
                finish_on_wire(choice.finish_reason, legacy),
                chat_logprobs(choice.logprobs, names) if request.logprobs else None,
                choice.matched_stop,
                choice.token_ids if request.return_token_ids else UNSET,
            )
        )
    reply.choices = [msgspec.Raw(encode(choice)) for choice in choices]
    if (n_top := request.prompt_logprobs) is not None:
        reply.prompt_logprobs = prompt_logprobs(said[0].prompt_logprobs, n_top, names)
    return encode(reply)


def _message(said: AssistantMessage, request: ChatRequest) -> ChatMessage:
    content = request.echoed + said.content
    message = ChatMessage(content if content or not said.tool_calls else None)
    if said.reasoning and request.tells_reasoning:
        message.reasoning_content = said.reasoning
    calls = [MessageToolCall(call.id, FunctionCall(call.name, call.arguments)) for call in said.tool_calls]
    if calls and request.functions:
        message.function_call = calls[0].function
    elif calls:
        message.tool_calls = calls
    return message
