"""What a parser has understood and not handed over yet."""

from __future__ import annotations

from uuid import uuid4

from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from llamafast.chat.reply.dialects.source import Sink


class Prose:
    """The content, or the reasoning, of one reply: white space is passed on once text follows it.

    White space at the beginning of a part belongs to the mark before it.
    """

    __slots__ = ("_blank", "_fresh", "_say", "spoken")

    def __init__(self, say: Sink) -> None:
        self._say = say
        self._blank = ""
        self._fresh = False
        self.spoken = False

    def begin_part(self) -> None:
        """What follows stands behind a mark."""
        self._fresh = True
        if not self.spoken:
            self._blank = ""

    def feed(self, text: str) -> None:
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        body = text.rstrip()
        if body:
            self._say(self._blank + body)
            self._blank = text[len(body) :]
            self.spoken = True
        else:
            self._blank += text

    def flush(self) -> None:
        """At the end of the reply: the last white space is text too, where it follows text."""
        if self._blank and not self._fresh:
            self._say(self._blank)
            self._blank = ""


class Said:
    """Collects Deltas; neighbours of one kind become one."""

    def __init__(self) -> None:
        self.n_calls = 0
        self.content = Prose(self._say_content)
        self.reasoning = Prose(self._say_reasoning)
        self._deltas: list[Delta] = []
        self._kind: type[ContentDelta | ReasoningDelta | ToolCallArguments] | None = None
        self._pieces: list[str] = []

    def take(self) -> list[Delta]:
        self._seal()
        deltas, self._deltas = self._deltas, []
        return deltas

    def begin(self, name: str) -> None:
        self._seal()
        self._deltas.append(ToolCallBegin(self.n_calls, f"call_{uuid4().hex[:24]}", name))
        self.n_calls += 1

    def arguments(self, text: str) -> None:
        """Of the call that began last."""
        if text:
            self._say(ToolCallArguments, text)

    def end(self) -> None:
        self._seal()
        self._deltas.append(ToolCallEnd(self.n_calls - 1))

    def _say_content(self, text: str) -> None:
        self._say(ContentDelta, text)

    def _say_reasoning(self, text: str) -> None:
        self._say(ReasoningDelta, text)

    def _say(self, kind: type[ContentDelta | ReasoningDelta | ToolCallArguments], text: str) -> None:
        if kind is not self._kind:
            self._seal()
            self._kind = kind
        self._pieces.append(text)

    def _seal(self) -> None:
        if self._pieces:
            text = "".join(self._pieces)
            self._pieces.clear()
            if self._kind is ToolCallArguments:
                self._deltas.append(ToolCallArguments(self.n_calls - 1, text))
            elif self._kind is ReasoningDelta:
                self._deltas.append(ReasoningDelta(text))
            else:
                self._deltas.append(ContentDelta(text))
