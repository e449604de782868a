"""Pieces of declared regions → Deltas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from llamafast.chat.reply.declared.regions import Piece, Region, RegionScanner
from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from llamafast.chat.reply.dialects.values import coerced, types_of
from llamafast.chat.tools import Tool

REASONING_FIELDS = frozenset({"reasoning_content", "reasoning", "thinking"})


class Call(NamedTuple):
    """A tool call as it was read: ``arguments`` is any JSON value, or JSON text."""

    name: str
    arguments: Any


class CallText(NamedTuple):
    """The text of a region that holds calls, and the named groups of its opening delimiter."""

    opening: str
    body: str
    closing: str
    captures: dict[str, str]

    @property
    def whole(self) -> str:
        return self.opening + self.body + self.closing


class TextField(NamedTuple):
    """A region of prose. ``strip`` takes white space off both ends, ``lstrip`` off the beginning; ``joint`` stands
    between what two regions of this field say."""

    reasoning: bool
    strip: bool = False
    lstrip: bool = False
    joint: str = ""


class CallField(NamedTuple):
    """A region of tool calls. ``read`` raises ValueError for text that holds none."""

    read: Callable[[CallText], Sequence[Call]]


class DroppedField(NamedTuple):
    """A region that no API has a field for: nobody is told what it says."""


Field = TextField | CallField | DroppedField


class DeclaredReply:
    """A ReplyParser over regions. Prose is passed on as it comes, a call when its region closes.

    A region that cannot be read is content, as it stands; so are calls where there are no ``tools``, and a reply
    without any region. ``begun`` is what the prompt has written of the reply.
    """

    def __init__(
        self,
        regions: Sequence[Region],
        fields: Mapping[str, Field],
        tools: Sequence[Tool],
        *,
        split_reasoning: bool,
        begun: str,
    ) -> None:
        self._scanner = RegionScanner(regions)
        self._fields = fields
        self._tools = tools
        self._split_reasoning = split_reasoning
        self._prose = {name: _Prose(field) for name, field in fields.items() if isinstance(field, TextField)}
        self._call: CallText | None = None
        self._bodies: list[str] = []
        self._n_calls = 0
        self._said = False
        self._stray: list[str] = []
        self._deltas: list[Delta] = []
        self._n_begun = 0
        self._read(self._scanner.feed(begun))
        for prose in self._prose.values():
            prose.begin_reply()
        self._said = False
        self._stray.clear()
        self._n_begun = self._scanner.n_held

    def feed(self, text: str) -> list[Delta]:
        return self._read(self._scanner.feed(text))

    def finish(self) -> list[Delta]:
        deltas = self._read(self._scanner.finish())
        if stray := "".join(self._stray).strip():
            deltas.append(ContentDelta(stray))
        return deltas

    def _read(self, pieces: Sequence[Piece]) -> list[Delta]:
        for piece in pieces:
            # what was held back of the prompt is in no reply
            n_begun = min(self._n_begun, len(piece.text))
            self._n_begun -= n_begun
            field = None if piece.region is None else self._fields[piece.region]
            if isinstance(field, CallField):
                self._read_call(field, piece)
            elif isinstance(field, TextField):
                self._read_prose(field, piece, n_begun)
            elif field is not None:
                self._end_prose()
                self._mark_said()
            elif not self._said:
                self._stray.append(piece.text[n_begun:])
        deltas, self._deltas = self._deltas, []
        return deltas

    def _read_prose(self, field: TextField, piece: Piece, n_begun: int) -> None:
        own = piece.text[n_begun:]
        if field.reasoning and not self._split_reasoning:
            self._say(ContentDelta(own), own)
        elif piece.kind == "text":
            text = self._prose[piece.region or ""].feed(own)
            self._say(ReasoningDelta(text) if field.reasoning else ContentDelta(text), text)
        if piece.kind != "text":
            self._end_prose()

    def _read_call(self, field: CallField, piece: Piece) -> None:
        if piece.kind == "text":
            self._bodies.append(piece.text)
        elif piece.kind == "open":
            self._end_prose()
            self._call, self._bodies = CallText(piece.text, "", "", piece.captures), []
        elif self._call is not None:
            text = self._call._replace(body="".join(self._bodies), closing=piece.text)
            self._call = None
            try:
                deltas = said_calls(field.read(text), self._tools, self._n_calls) if self._tools else []
            except (ValueError, RecursionError):
                deltas = []
            if not deltas:
                self._say(ContentDelta(text.whole), text.whole)
                return
            self._n_calls += sum(isinstance(delta, ToolCallBegin) for delta in deltas)
            self._deltas += deltas
            self._mark_said()

    def _end_prose(self) -> None:
        for prose in self._prose.values():
            prose.end()

    def _say(self, delta: Delta, text: str) -> None:
        if text:
            self._deltas.append(delta)
            self._mark_said()

    def _mark_said(self) -> None:
        """Text outside of regions is content only where nothing else is."""
        self._said = True
        self._stray.clear()


class WholeReply:
    """A ReplyParser that reads the reply when it is complete: ``read`` finds reasoning, content and calls.

    A reply in which nothing is found is content, as it stands.
    """

    def __init__(
        self,
        read: Callable[[str], tuple[str, str, Sequence[Call]]],
        tools: Sequence[Tool],
        *,
        split_reasoning: bool,
        begun: str,
    ) -> None:
        self._read = read
        self._tools = tools
        self._split_reasoning = split_reasoning
        self._begun = begun
        self._pieces: list[str] = []

    def feed(self, text: str) -> list[Delta]:
        self._pieces.append(text)
        return []

    def finish(self) -> list[Delta]:
        text = "".join(self._pieces)
        try:
            reasoning, content, calls = self._read(self._begun + text)
            deltas = said_calls(calls, self._tools, 0) if self._tools else []
        except (ValueError, RecursionError):
            reasoning, content, deltas = "", "", []
        if not (reasoning or content or deltas):
            content = text
        if not self._split_reasoning:
            reasoning, content = "", reasoning + content
        prose = [ReasoningDelta(reasoning)] if reasoning else []
        return [*prose, *([ContentDelta(content)] if content else []), *deltas]


def said_calls(calls: Sequence[Call], tools: Sequence[Tool], index: int) -> list[Delta]:
    """``calls`` as Deltas, counted from ``index``. Raises ValueError for arguments that are no JSON."""
    declared = {tool.name: tool for tool in tools}
    deltas: list[Delta] = []
    for i, call in enumerate(calls, index):
        arguments = _arguments(call, declared.get(call.name))
        begin = ToolCallBegin(i, f"call_{uuid4().hex[:24]}", call.name)
        deltas += [begin, ToolCallArguments(i, arguments), ToolCallEnd(i)]
    return deltas


class _Prose:
    """Takes the white space off as the field says, without waiting for the end of the region."""

    def __init__(self, field: TextField) -> None:
        self._field = field
        self._said = self._inside = False
        self._blank = ""

    def feed(self, text: str) -> str:
        before = ""
        if not self._inside:
            if self._field.strip or self._field.lstrip or self._said:
                text = text.lstrip()
            if not text:
                return ""
            before = self._field.joint if self._said else ""
            self._inside = True
        self._said = True
        if self._field.strip:
            text = self._blank + text
            kept = text.rstrip()
            self._blank = text[len(kept) :]
            text = kept
        return before + text

    def end(self) -> None:
        self._inside = False
        self._blank = ""

    def begin_reply(self) -> None:
        """What was said so far was said by the prompt."""
        self._said = False
        self._blank = ""


def _arguments(call: Call, tool: Tool | None) -> str:
    """The arguments as JSON, texts typed as the tool's schema has them. Raises ValueError."""
    arguments = call.arguments
    if isinstance(arguments, str):
        json.loads(arguments)
        return arguments
    if not isinstance(arguments, dict):
        return "{}" if arguments is None else _json(arguments)
    schema = tool.parameters if tool else {}
    properties = schema.get("properties")
    typed = properties if isinstance(properties, dict) else {}
    pairs = (f"{_json(key)}:{_typed(value, typed.get(key), schema)}" for key, value in arguments.items())
    return f"{{{','.join(pairs)}}}"


def _typed(value: Any, schema: Any, root: Mapping[str, Any]) -> str:
    if isinstance(value, str) and schema is not None:
        return coerced(value, types_of(schema, root))
    return _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
