"""One choice on its way to the client: Events in, Deltas and the reason of its end out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ReplyParser,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from llamafast.engine.types import Event, TokenLogprob

ReplyFinish = Literal["stop", "length", "tool_calls"]


class ReplyPart(NamedTuple):
    """What one Event adds to a ``choice``, in order; ``finish_reason`` comes with the last part, and with it the stop
    string or the stop token's id that was met."""

    choice: int
    deltas: list[Delta]
    finish_reason: ReplyFinish | None
    logprobs: Sequence[TokenLogprob] = ()
    matched_stop: str | int | None = None


class Reply:
    """One choice on its way to the client: its parser, and what it needs to know of everything said so far.

    Without ``parallel`` calls nothing that follows the first complete call is passed on. ``reasoning_tokens`` counts
    the tokens spent on reasoning, its opening mark included; where tokens of both kinds come in one Event they are
    divided by their characters.
    """

    def __init__(self, parser: ReplyParser, *, parallel: bool = True) -> None:
        self.reasoning_tokens = 0
        self._parser = parser
        self._parallel = parallel
        self._closed = False
        self._called = False
        self._reasons = False
        self._uncounted = 0

    def read(self, event: Event) -> ReplyPart:
        deltas = self._parser.feed(event.text)
        if event.finish_reason is not None:
            deltas += self._parser.finish()
        self._count(event, deltas)
        if not self._parallel:
            deltas = self._first_call_only(deltas)
        called = self._called and event.finish_reason == "stop"
        finish_reason: ReplyFinish | None = "tool_calls" if called else event.finish_reason
        return ReplyPart(event.index, deltas, finish_reason, event.logprobs or (), event.matched_stop)

    def _count(self, event: Event, deltas: list[Delta]) -> None:
        self._uncounted += event.n_tokens
        reasoning = others = 0
        for delta in deltas:
            self._reasons = isinstance(delta, ReasoningDelta)
            if isinstance(delta, ReasoningDelta):
                reasoning += len(delta.text)
            elif isinstance(delta, ContentDelta | ToolCallArguments):
                others += len(delta.text)
            elif isinstance(delta, ToolCallBegin):
                others += len(delta.name)
                self._called = True
        if event.finish_reason is not None and self._reasons and not deltas:
            reasoning = 1
        if reasoning or others:
            self.reasoning_tokens += round(self._uncounted * reasoning / (reasoning + others))
            self._uncounted = 0

    def _first_call_only(self, deltas: list[Delta]) -> list[Delta]:
        kept: list[Delta] = []
        for delta in deltas:
            if not self._closed:
                kept.append(delta)
                self._closed = isinstance(delta, ToolCallEnd)
        return kept
