"""Reads one tool call in each of the shapes that ``CallForm`` describes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from json.encoder import encode_basestring

from llamafast.chat.reply.dialects.forms import CallForm
from llamafast.chat.reply.dialects.said import Said
from llamafast.chat.reply.dialects.source import BLANK, Sink, Source, Step, marks_of
from llamafast.chat.reply.dialects.values import coerced, escaped, read_string, read_value, types_of
from llamafast.chat.tools import Tool

SEPARATORS = re.compile(r"[\s,;]*")

_NAME = re.compile(r"[\w.:/-]*")
_MAX_NAME = 128
_NAME_KEYS = frozenset({"name", "tool_name", "function"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
_CALL_KEYS = _NAME_KEYS | _ARGUMENT_KEYS | {"type", "id", "tool_call_id"}
_STRING = frozenset({"string"})
_ANY_BUT_STRING = frozenset({"object", "array", "number", "boolean", "null"})


class Outcome(Enum):
    NO_CALL = 0  # nothing was said yet
    BROKEN = 1  # begun, and not what it should be from there on
    COMPLETE = 2


class CallReader:
    """Reads from ``source`` and says what it reads; ``tools`` by name have the schemas that give values their types."""

    def __init__(self, source: Source, said: Said, tools: Mapping[str, Tool]) -> None:
        self._source = source
        self._said = said
        self._tools = tools

    def read(self, form: CallForm, *, declared: bool) -> Step[Outcome]:
        """One call, after the marks before it. With ``declared`` only the name of a tool makes it one."""
        if form.shape == "object":
            outcome = yield from self._object_call(declared)
            if outcome is Outcome.COMPLETE:
                yield from self._source.skip(form.after.split())
            return outcome
        name = yield from self._name(form)
        if not name or (declared and name not in self._tools):
            return Outcome.NO_CALL
        if form.shape == "python":
            return (yield from self._python_call(name))
        if form.id_begin and (yield from self._source.literal(form.id_begin)):
            yield from self._source.run(_NAME)
        if not (yield from self._source.expect(form.name_end.split())):
            return Outcome.NO_CALL
        if form.shape == "named":
            return (yield from self._named_call(name, form))
        return (yield from self._tagged_call(name, form))

    def _name(self, form: CallForm) -> Step[str]:
        yield from self._source.run(BLANK)
        name = (yield from self._source.run(_NAME)).removeprefix(form.name_prefix)
        if form.numbered:
            name = name.partition(":")[0]
        return name if len(name) <= _MAX_NAME else ""

    def _object_call(self, declared: bool) -> Step[Outcome]:
        """``{"name": …, "arguments": {…}}``, also with further keys, and inside of ``{"function": …}``."""
        source = self._source
        yield from source.run(BLANK)
        if not (yield from source.literal("{")):
            return Outcome.NO_CALL
        name, begun, wrappers = "", False, 0
        arguments: list[str] | None = None  # while the name is not known yet
        while True:
            yield from source.run(SEPARATORS)
            if (yield from source.literal("}")):
                if not wrappers:
                    break
                wrappers -= 1
                continue
            failed = Outcome.BROKEN if begun else Outcome.NO_CALL
            key = yield from read_string(source)
            if key is None or (declared and key not in _CALL_KEYS) or not (yield from source.expect(":")):
                return failed
            is_arguments = key in _ARGUMENT_KEYS and not begun and arguments is None
            if is_arguments and name:
                # told before the first of its arguments is there
                self._begin(name)
                begun = True
            yield from source.run(BLANK)
            if key == "function" and (yield from source.literal("{")):
                wrappers += 1
            elif key in _NAME_KEYS and not name:
                name = (yield from read_string(source)) or ""
                if not _NAME.fullmatch(name) or not name or len(name) > _MAX_NAME:
                    return failed
                if declared and name not in self._tools:
                    return failed
            elif is_arguments:
                if not begun:
                    arguments = []
                sink = self._said.arguments if arguments is None else arguments.append
                if not (yield from self._arguments(sink)):
                    return Outcome.BROKEN if begun else Outcome.NO_CALL
            elif not (yield from read_value(source, lambda _: None)):
                return failed
        if not begun:
            if not name or (declared and arguments is None):
                return Outcome.NO_CALL
            self._begin(name)
            self._said.arguments("".join(arguments or ["{}"]))
        return self._end()

    def _arguments(self, sink: Sink) -> Step[bool]:
        """An object; null stands for an empty one, and a string for the JSON that it holds."""
        source = self._source
        char = yield from source.peek()
        if char == "{":
            return (yield from read_value(source, sink))
        if char == '"':
            text = yield from read_string(source)
            if text is None:
                return False
            sink(text if text.lstrip().startswith("{") else encode_basestring(text))
            return True
        pieces: list[str] = []
        complete = yield from read_value(source, pieces.append)
        sink("{}" if pieces == ["", "null"] else "".join(pieces))
        return complete

    def _named_call(self, name: str, form: CallForm) -> Step[Outcome]:
        source, after = self._source, form.after.split()
        yield from source.run(BLANK)
        if (yield from source.peek()) != "{":
            if not after or not (yield from source.expect(after)):
                return Outcome.NO_CALL
            self._begin(name)
            self._said.arguments("{}")
            return self._end()
        self._begin(name)
        if not (yield from read_value(source, self._said.arguments)):
            return Outcome.BROKEN
        outcome = self._end()
        yield from source.skip(after)
        return outcome

    def _tagged_call(self, name: str, form: CallForm) -> Step[Outcome]:
        source, after = self._source, form.after.split()
        before_key = "{"
        while True:
            yield from source.run(BLANK)
            if (yield from source.literal(form.parameter_begin)):
                if before_key == "{":
                    self._begin(name)
                if not (yield from self._parameter(name, form, before_key)):
                    return Outcome.BROKEN
                before_key = ", "
                continue
            for i, mark in enumerate(after):
                if (yield from source.literal(mark)):
                    if before_key == "{":
                        self._begin(name)
                    self._said.arguments("{}" if before_key == "{" else "}")
                    outcome = self._end()
                    yield from source.skip(after[i + 1 :])
                    return outcome
            return Outcome.NO_CALL if before_key == "{" else Outcome.BROKEN

    def _parameter(self, name: str, form: CallForm, before_key: str) -> Step[bool]:
        source = self._source
        head, *rest = form.key_end.split()
        pieces: list[str] = []
        if not (yield from source.until(marks_of((head,)), pieces.append)):
            return False
        key = "".join(pieces)
        types = self._types(name, key)
        if form.key_end_json:
            if (yield from source.expect(rest)):
                types = frozenset()
            elif (yield from source.expect(form.key_end_json.split()[1:])):
                types = _ANY_BUT_STRING
            else:
                return False
        elif not (yield from source.expect(rest)):
            return False
        self._said.arguments(f"{before_key}{encode_basestring(key)}: ")
        value_end = form.value_end.strip()
        ends: tuple[str, ...] = (value_end,)
        if form.key_end.endswith("\n"):
            yield from source.literal("\n")
            ends = ("\n" + value_end, value_end)
        if types <= _STRING:
            self._said.arguments('"')
            mark = yield from source.until(marks_of(ends), lambda text: self._said.arguments(escaped(text)))
            self._said.arguments('"' if mark else "")
            return bool(mark)
        pieces = []
        if not (yield from source.until(marks_of(ends), pieces.append)):
            return False
        self._said.arguments(coerced("".join(pieces), types))
        return True

    def _types(self, name: str, key: str) -> frozenset[str]:
        tool = self._tools.get(name)
        properties = tool.parameters.get("properties") if tool else None
        return types_of(properties.get(key), tool.parameters) if tool and isinstance(properties, dict) else _STRING

    def _python_call(self, name: str) -> Step[Outcome]:
        source = self._source
        if not (yield from source.literal("(")):
            return Outcome.NO_CALL
        self._begin(name)
        before_key = "{"
        while True:
            yield from source.run(SEPARATORS)
            if (yield from source.literal(")")):
                self._said.arguments("{}" if before_key == "{" else "}")
                return self._end()
            key = yield from source.run(_NAME)
            if not key or not (yield from source.expect("=")):
                return Outcome.BROKEN
            self._said.arguments(f"{before_key}{encode_basestring(key)}: ")
            before_key = ", "
            yield from source.run(BLANK)
            if not (yield from read_value(source, self._said.arguments)):
                return Outcome.BROKEN

    def _begin(self, name: str) -> None:
        self._source.forget()
        self._said.begin(name)

    def _end(self) -> Outcome:
        self._said.end()
        return Outcome.COMPLETE
