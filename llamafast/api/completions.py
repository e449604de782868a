"""POST /v1/completions, from the body to the reply: a choice for each prompt, the best of several, echoes."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import UNSET

from llamafast.api.decode import decode_request
from llamafast.api.delivery import Answer, collect, run_sized, stream, tokens_size, usage_of
from llamafast.api.grammars import Grammars
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.logprobs import CompletionLogprobs, PromptScores, TokenNames
from llamafast.api.measured import Measured
from llamafast.api.schema.completions import Completion, CompletionChoice, CompletionRequest
from llamafast.api.sse import HOLE, encode, frame, frame_pieces
from llamafast.chat.grammar.asked import Ask
from llamafast.chat.plan import echo_texts, plan_completion, plan_infill
from llamafast.engine.types import EnginePort, Event, Generation, Plan
from llamafast.errors import InvalidRequest

_DECODER = msgspec.json.Decoder(CompletionRequest)


class CompletionsEndpoint:
    def __init__(self, engine: EnginePort, grammars: Grammars, ping_seconds: float) -> None:
        self._engine = engine
        self._grammars = grammars
        self._ping_seconds = ping_seconds

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        request = await run_sized(len(body), decode_request, _DECODER, body, self._engine.info, exchange)
        plan, ask, echoes = await run_sized(len(body), self._plan, request)
        await self._engine.prepare(plan)
        plan = await self._grammars.constrained(plan, ask)
        generation = exchange.follow(self._engine.submit(plan, exchange.tenant))
        measured = Measured(generation, request)
        try:
            reply = Completion(
                id=f"cmpl-{uuid4().hex}",
                created=int(time.time()),
                model=request.model or self._engine.info.id,
                choices=[],
            )
            exchange.response_id = reply.id
            writer = (
                None if request.logprobs is None else CompletionLogprobs(request, plan, echoes, self._engine.tokenizer)
            )
            if request.stream:
                frames = CompletionFrames(reply, echoes, plan, writer, measured, wants_usage=request.wants_usage)
                await stream(exchange, generation, frames, self._ping_seconds, request.logprobs or 0)
                return
            answers = await collect(generation, len(plan.prompts) * plan.n)
            reply.usage, reply.timings = usage_of(generation), measured.wanted()
            n_tokens = generation.completion_tokens + sum(len(answer.prompt_logprobs) for answer in answers)
            n_bytes = tokens_size(n_tokens, plan.top_logprobs or 0) + len(answers) * max(map(len, echoes))
            kept = _best(answers, plan.n, request.n or 1)
            told = plan.prompts if plan.tell_tokens else None
            scores = (
                None
                if request.prompt_logprobs is None
                else PromptScores(TokenNames(request, self._engine.tokenizer, request.prompt_logprobs), plan.n)
            )
            body = await run_sized(n_bytes, _collected, reply, answers, kept, echoes, plan.n, writer, told, scores)
            await exchange.reply(200, body, JSON_TYPE)
        finally:
            generation.cancel()

    def _plan(self, request: CompletionRequest) -> tuple[Plan, Ask | None, list[str]]:
        """The Plan, what is asked of the text, and per prompt the text that precedes each answer."""
        engine = self._engine
        if request.stream and (request.best_of or 1) > (request.n or 1):
            raise InvalidRequest("`best_of` larger than `n` cannot be streamed", param="best_of")
        if (infill := request.infill()) is not None:
            return *plan_infill(infill, engine.tokenizer, engine.info), [""]
        task = request.task()
        plan, ask = plan_completion(task, engine.tokenizer, engine.info)
        echoes = echo_texts(task, plan, engine.tokenizer) if task.echo else [""] * len(plan.prompts)
        return plan, ask, echoes


def _collected(
    reply: Completion,
    answers: list[Answer],
    kept: Iterable[int],
    echoes: list[str],
    n: int,
    writer: CompletionLogprobs | None,
    prompts: Sequence[array[int]] | None,
    scores: PromptScores | None,
) -> bytes:
    """The JSON of ``reply`` with the ``kept`` answers, encoded one by one: no call keeps the GIL for all of them.
    ``prompts`` are those whose ids are told, and the answers'; with ``scores`` log probabilities of the prompts are."""
    reply.choices = [
        msgspec.Raw(
            encode(
                CompletionChoice(
                    echoes[at // n] + answers[at].text,
                    index,
                    answers[at].finish_reason,
                    None if writer is None else writer.whole(at, answers[at]),
                    answers[at].matched_stop,
                    prompt_logprobs=UNSET if scores is None else scores.told(at, answers[at].prompt_logprobs),
                    **({} if prompts is None else _token_ids(prompts[at // n], answers[at].token_ids)),
                )
            )
        )
        for index, at in enumerate(kept)
    ]
    return encode(reply)


class CompletionFrames:
    """The pieces of a streamed completion (``api.sse.Frames``); ``reply`` is what all its chunks have in common."""

    def __init__(
        self,
        reply: Completion,
        echoes: list[str],
        plan: Plan,
        writer: CompletionLogprobs | None,
        measured: Measured,
        *,
        wants_usage: bool,
    ) -> None:
        self._measured = measured
        self._reply = msgspec.structs.replace(reply, usage=None if wants_usage else UNSET)
        self._echoes = echoes
        self._n = plan.n
        choices = range(len(plan.prompts) * plan.n if plan.tell_tokens else 0)
        self._prompts = {at: plan.prompts[at // plan.n] for at in choices}
        self._writer = writer
        self._wants_usage = wants_usage
        self._before, self._between, self._after = frame_pieces(self._chunk(CompletionChoice(HOLE, HOLE)))

    def opening(self) -> Iterator[bytes]:
        for prompt_index, echo in enumerate(self._echoes):
            # with log probabilities an echo waits for those of the prompt
            for k in range(self._n if echo and self._writer is None else 0):
                yield self._text(prompt_index * self._n + k, echo)

    def event(self, event: Event) -> bytes:
        frames = self._with_logprobs(self._writer, event) if self._writer else self._plain(event)
        if event.token_ids is not None:
            # before the text that they spell, which may be held back still; the first time the prompt's too
            ids = _token_ids(self._prompts.pop(event.index, None), event.token_ids)
            frames.insert(0, self._frame(CompletionChoice("", event.index, **ids)))
        if event.finish_reason is not None:
            choice = CompletionChoice("", event.index, event.finish_reason, stop_reason=event.matched_stop)
            frames.append(self._frame(choice))
        return self._measured.framed(frames, lambda: self._frame(CompletionChoice("", 0)))

    def _plain(self, event: Event) -> list[bytes]:
        return [self._text(event.index, event.text)] if event.text else []

    def _with_logprobs(self, writer: CompletionLogprobs, event: Event) -> list[bytes]:
        return [
            self._frame(CompletionChoice(text, event.index, None, logprobs)) for text, logprobs in writer.parts(event)
        ]

    def closing(self, generation: Generation) -> bytes:
        if not self._wants_usage:
            return b""
        return frame(msgspec.structs.replace(self._reply, usage=usage_of(generation)))

    def _text(self, index: int, text: str) -> bytes:
        return b"%b%b%b%d%b" % (self._before, encode(text), self._between, index, self._after)

    def _frame(self, choice: CompletionChoice) -> bytes:
        return frame(self._chunk(choice))

    def _chunk(self, choice: CompletionChoice) -> Completion:
        return msgspec.structs.replace(self._reply, choices=[choice])


def _token_ids(prompt: array[int] | None, token_ids: list[int] | None) -> dict[str, Any]:
    """The fields of a choice that has ids."""
    prompt_ids = {} if prompt is None else {"prompt_token_ids": prompt.tolist()}
    return {**prompt_ids, "token_ids": token_ids}


def _best(answers: list[Answer], n_tried: int, n: int) -> Iterator[int]:
    """Of the ``n_tried`` answers to each prompt the ``n`` whose tokens are likeliest on average, in their order."""
    for first in range(0, len(answers), n_tried):
        tried = range(first, first + n_tried)
        yield from sorted(sorted(tried, key=lambda at: -answers[at].mean_logprob)[:n])
