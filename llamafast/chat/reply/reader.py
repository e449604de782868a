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
from llamafast.chat.reply.stops import ContentStops
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
    token_ids: Sequence[int] = ()
    prompt_logprobs: Sequence[TokenLogprob] = ()


class Reply:
    """One choice on its way to the client: its parser, and what it needs to know of everything said so far.

    ``n_tokens`` counts its tokens and ``reasoning_tokens`` those spent on reasoning, its opening mark included; where
    tokens of several kinds come in one Event they are divided by their characters. One of ``stops`` in its content ends
    it before its Events do, and without ``parallel`` calls so does the end of its first one: once it has ``ended``,
    whatever more comes says nothing and does not count.
    """

    def __init__(self, parser: ReplyParser, *, parallel: bool = True, stops: Sequence[str] = ()) -> None:
        self.n_tokens = self.reasoning_tokens = 0
        self.ended = False
        self._parser = parser
        self._parallel = parallel
        self._stops = ContentStops(stops) if stops else None
        self._called = False
        self._reasons = False
        self._uncounted = 0

    def read(self, event: Event) -> ReplyPart:
        if self.ended:
            return ReplyPart(event.index, [], None)
        self.n_tokens += event.n_tokens
        deltas = self._parser.feed(event.text)
        n_fed = len(deltas)
        if event.finish_reason is not None:
            deltas += self._parser.finish()
        self._count(event, deltas)
        finish_reason: ReplyFinish | None = event.finish_reason
        matched_stop = event.matched_stop
        n_behind = 0
        if not self._parallel and (n_kept := _first_call(deltas)):
            n_behind, deltas = _n_characters(deltas[n_kept:]), deltas[:n_kept]
            if n_kept <= n_fed:
                finish_reason, matched_stop, self.ended = "tool_calls", None, True
        if self._stops is not None:
            deltas, met, n_more = self._until_stop(self._stops, deltas, last=finish_reason is not None)
            if met is not None:
                finish_reason, matched_stop, self.ended = "stop", met, True
                n_behind += n_more
        if self.ended:
            self.n_tokens -= min(event.n_tokens - 1, round(event.n_tokens * n_behind / max(1, len(event.text))))
        self._called = self._called or any(isinstance(delta, ToolCallBegin) for delta in deltas)
        if self._called and finish_reason == "stop":
            finish_reason = "tool_calls"
        return ReplyPart(
            event.index,
            deltas,
            finish_reason,
            event.logprobs or (),
            matched_stop,
            event.token_ids or (),
            event.prompt_logprobs or (),
        )

    @staticmethod
    def _until_stop(stops: ContentStops, deltas: list[Delta], *, last: bool) -> tuple[list[Delta], str | None, int]:
        """``deltas`` before a stop string, which it is, and how many characters stand behind it."""
        shown: list[Delta] = []
        for i, delta in enumerate(deltas):
            text, met = stops.read(delta.text) if isinstance(delta, ContentDelta) else (stops.rest(), None)
            if text:
                shown.append(ContentDelta(text))
            if met is not None:
                return shown, met, stops.n_behind + _n_characters(deltas[i + 1 :])
            if not isinstance(delta, ContentDelta):
                shown.append(delta)
        if last and (text := stops.rest()):
            shown.append(ContentDelta(text))
        return shown, None, 0

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
        if event.finish_reason is not None and self._reasons and not deltas:
            reasoning = 1
        if reasoning or others:
            self.reasoning_tokens += round(self._uncounted * reasoning / (reasoning + others))
            self._uncounted = 0


def _first_call(deltas: Sequence[Delta]) -> int:
    """How many of them go to the end of the first call, 0 where none ends."""
    return next((n for n, delta in enumerate(deltas, 1) if isinstance(delta, ToolCallEnd)), 0)


def _n_characters(deltas: Sequence[Delta]) -> int:
    return sum(len(getattr(delta, "text", "")) for delta in deltas)
