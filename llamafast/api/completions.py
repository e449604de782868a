"""POST /v1/completions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import msgspec
from msgspec import UNSET

from llamafast.api.decode import decode_request
from llamafast.api.delivery import COMPILES, collect, run_sized, stream, usage_of
from llamafast.api.http import Exchange
from llamafast.api.schema.completions import Completion, CompletionChoice, CompletionRequest
from llamafast.api.sse import HOLE, encode, frame, frame_pieces
from llamafast.chat.constraint import Constraints
from llamafast.chat.plan import echo_texts, plan_completion
from llamafast.engine.types import EnginePort, Event, Generation, Plan
from llamafast.errors import InvalidRequest

_DECODER = msgspec.json.Decoder(CompletionRequest)


class CompletionsEndpoint:
    def __init__(self, engine: EnginePort, constraints: Constraints, ping_seconds: float) -> None:
        self._engine = engine
        self._constraints = constraints
        self._ping_seconds = ping_seconds

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        request = await run_sized(len(body), decode_request, _DECODER, body, self._engine.info)
        n_bytes = COMPILES if request.constrained else len(body)
        plan, echoes = await run_sized(n_bytes, self._plan, request)
        generation = exchange.follow(self._engine.submit(plan))
        try:
            reply = Completion(
                id=f"cmpl-{uuid4().hex}", created=int(time.time()), model=self._engine.info.id, choices=[]
            )
            if request.stream:
                frames = CompletionFrames(reply, echoes, plan.n, request.wants_usage)
                await stream(exchange, generation, frames, self._ping_seconds)
                return
            answers = await collect(generation, len(plan.prompts) * plan.n)
            reply.choices = [
                CompletionChoice(echoes[index // plan.n] + answer.text, index, answer.finish_reason)
                for index, answer in enumerate(answers)
            ]
            reply.usage = usage_of(generation)
            await exchange.reply_json(reply)
        finally:
            generation.cancel()

    def _plan(self, request: CompletionRequest) -> tuple[Plan, list[str]]:
        """The Plan, and per prompt the text that precedes each answer."""
        engine = self._engine
        _check_best_of(request)
        plan = plan_completion(request, engine.tokenizer, self._constraints, engine.info)
        echoes = echo_texts(request, plan, engine.tokenizer) if request.echo else [""] * len(plan.prompts)
        return plan, echoes


class CompletionFrames:
    """The pieces of a streamed completion (``api.sse.Frames``); ``reply`` is what all its chunks have in common."""

    def __init__(self, reply: Completion, echoes: list[str], n: int, wants_usage: bool) -> None:
        self._reply = msgspec.structs.replace(reply, usage=None if wants_usage else UNSET)
        self._echoes = echoes
        self._n = n
        self._wants_usage = wants_usage
        self._before, self._between, self._after = frame_pieces(self._chunk(CompletionChoice(HOLE, HOLE)))

    def opening(self) -> Iterator[bytes]:
        for prompt_index, echo in enumerate(self._echoes):
            for k in range(self._n if echo else 0):
                yield self._text(prompt_index * self._n + k, echo)

    def event(self, event: Event) -> bytes:
        text = self._text(event.index, event.text) if event.text else b""
        if event.finish_reason is None:
            return text
        return text + frame(self._chunk(CompletionChoice("", event.index, event.finish_reason)))

    def closing(self, generation: Generation) -> bytes:
        if not self._wants_usage:
            return b""
        return frame(msgspec.structs.replace(self._reply, usage=usage_of(generation)))

    def _text(self, index: int, text: str) -> bytes:
        return b"%b%b%b%d%b" % (self._before, encode(text), self._between, index, self._after)

    def _chunk(self, choice: CompletionChoice) -> Completion:
        return msgspec.structs.replace(self._reply, choices=[choice])


def _check_best_of(request: CompletionRequest) -> None:
    n = request.n or 1
    if request.best_of is None or request.best_of == n:
        return
    problem = "is not supported yet when larger than" if request.best_of > n else "must not be smaller than"
    raise InvalidRequest(f"`best_of` {problem} `n`", param="best_of")
