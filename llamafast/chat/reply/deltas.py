"""The Deltas that every reply is made of, what parses text into them, and the message they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from msgspec import Struct


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


NewParser = Callable[[], ReplyParser]


class PlainReply:
    """All text is content."""

    def feed(self, text: str) -> list[Delta]:
        return [ContentDelta(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


class ToolCall(Struct):
    """A finished call; ``arguments`` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


class AssistantMessage(NamedTuple):
    """All that one choice said."""

    content: str
    reasoning: str
    tool_calls: list[ToolCall]


def assemble(deltas: Iterable[Delta]) -> AssistantMessage:
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
    return AssistantMessage("".join(content), "".join(reasoning), tool_calls)
