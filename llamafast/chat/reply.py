"""What generated text means: the nouns that every reply is made of, and who makes them out of text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct

from llamafast.engine.types import Event, TokenLogprob


class ContentDelta(Struct, frozen=True, gc=False):
    """More of the answer's own text."""

    text: str


class ReasoningDelta(Struct, frozen=True, gc=False):
    """More of the text a thinking model writes before its answer."""

    text: str


class ToolCallBegin(Struct, frozen=True, gc=False):
    """A tool call: ``index`` counts the calls of one message from 0; ``id`` is new for every call."""

    index: int
    id: str
    name: str


class ToolCallArguments(Struct, frozen=True, gc=False):
    """More of the arguments of call ``index``; the pieces of one call, joined, are one JSON value, unless the model
    stopped in the middle of it or wrote none."""

    index: int
    text: str


class ToolCallEnd(Struct, frozen=True, gc=False):
    """Call ``index`` is complete."""

    index: int


Delta = ContentDelta | ReasoningDelta | ToolCallBegin | ToolCallArguments | ToolCallEnd


class ReplyParser(Protocol):
    """Turns the text of one choice into Deltas while it is generated; the result does not depend on how the text
    was cut into pieces. One parser per choice. It never raises on what a model wrote: text that fits no form
    is content."""

    def feed(self, text: str) -> list[Delta]:
        """What became certain with this text."""
        ...

    def finish(self) -> list[Delta]:
        """What was held back, now that no text will follow."""
        ...


class PlainReply:
    """All text is content."""

    def feed(self, text: str) -> list[Delta]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


ReplyFinish = Literal["stop", "length", "tool_calls"]


class ReplyPart(NamedTuple):
    """What one Event adds to a ``choice``, in order; ``finish_reason`` comes with the last part."""

    choice: int
    deltas: list[Delta]
    finish_reason: ReplyFinish | None
    logprobs: Sequence[TokenLogprob] = ()


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
        return ReplyPart(event.index, deltas, "tool_calls" if called else event.finish_reason, event.logprobs or ())

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


class ToolCall(Struct):
    """A finished call; ``arguments`` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(NamedTuple):
    """All that one choice said."""

    content: str
    reasoning: str
    tool_calls: list[ToolCall]


def assemble(deltas: Iterable[Delta]) -> Message:
    """The message that a client puts together from ``deltas``."""
    content, reasoning = [], []
    calls: list[tuple[ToolCallBegin, list[str]]] = []
    for delta in deltas:
        match delta:
            case ContentDelta(text):
                content.append(text)
            case ReasoningDelta(text):
                reasoning.append(text)
            case ToolCallBegin():
                calls.append((delta, []))
            case ToolCallArguments(index, text):
                calls[index][1].append(text)
    tool_calls = [ToolCall(begin.id, begin.name, "".join(pieces)) for begin, pieces in calls]
    return Message("".join(content), "".join(reasoning), tool_calls)


NewParser = Callable[[], ReplyParser]
