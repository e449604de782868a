"""Grammars of tool calls in the letter of a dialect: for calls that a request forces, and for strict tools.

A grammar is built in Lark's notation as llguidance extends it: ``%json`` embeds a schema, ``%lark`` another grammar,
``<[id]>`` is a control token, ``[suffix=…]`` ends free text at the first occurrence of a mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llamafast.chat.grammar.bare_text import Unwritable, branches, is_text, text_terminal
from llamafast.chat.grammar.compiler import Grammar
from llamafast.chat.grammar.in_json import quoted as quoted_grammar
from llamafast.chat.grammar.lark import Rules, quoted, regex
from llamafast.chat.grammar.notation import Notation
from llamafast.chat.grammar.requested import json_schema_grammar, text_grammar
from llamafast.chat.reply.dialects.forms import CallForm, Dialect
from llamafast.chat.reply.dialects.values import types_of
from llamafast.chat.tools import Tool
from llamafast.errors import InvalidRequest, UnsupportedParameter

# Most calls of one reply, where a request forces calls and allows more than one.
MAX_CALLS = 16

# Harmony's headers; the prompt has written "<|start|>assistant".
_ANALYSIS = "<|channel|>analysis<|message|>"
_FINAL = "<|channel|>final<|message|>"


class CallGrammar:
    """Writes grammars for one dialect. ``control_token`` gives the id of a control token's text, None for other
    text; ``ends`` are the control tokens that end a reply, which no grammar spells out."""

    def __init__(self, dialect: Dialect, control_token: Callable[[str], int | None], ends: Iterable[int]) -> None:
        self._dialect = dialect
        self._control_token = control_token
        self._ends = frozenset(ends)
        marks = [mark for mark in dialect.marks() if control_token(mark) is not None]
        self._marks = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or "(?!)")

    def reply(
        self, tools: Sequence[Tool], answer: Grammar | None, *, forced: bool, parallel: bool, begun: str
    ) -> list[Grammar] | None:
        """What a reply may be; None: any text. Calls of ``tools`` only when ``forced``, else these or ``answer``, or
        free text when that is None, in which calls are free too but those of ``constrained`` tools.

        One call, with ``parallel`` up to ``MAX_CALLS``. ``begun`` is the mark that the prompt ends with where it has
        begun the reply's reasoning; where it has not, a model that reasons may begin. Raises UnsupportedParameter for a
        strict tool whose schema cannot be followed in the dialect's notation.
        """
        if not forced and answer is None and not any(tool.constrained for tool in tools):
            return None
        rules = Rules()
        section = self._section(tools, rules, parallel=parallel) if tools else ""
        if forced:
            start = section
        elif answer is not None:
            start = f"{self._literal(_FINAL) if self._dialect.channels else ''} @answer"
            start = f"{section} | {start}" if section else start
        else:
            start = self._free_text_and(tools, rules)
        thoughts = self._thoughts(begun, rules)
        named = [{"name": "answer", **answer}] if answer is not None and not forced else []
        return [{"lark_grammar": rules.text(f"{thoughts} ({start})")}, *named]

    def _section(self, tools: Sequence[Tool], rules: Rules, *, parallel: bool) -> str:
        form = self._dialect.forms[0]
        call = rules.add(" | ".join(self._call(form, form.before, tool, rules) for tool in tools))
        more = f"({self._literal(form.between)} {call}){{0,{MAX_CALLS - 1}}}" if parallel else ""
        begin = self._literal(form.begin + "[" * form.listed)
        return f"{begin} {call} {more} {self._literal(']' * form.listed + form.end)}"

    def _free_text_and(self, tools: Sequence[Tool], rules: Rules) -> str:
        """Free text in which a call, once it is begun, is one of ``tools`` with its arguments."""
        form = self._dialect.forms[0]
        if not form.opening:
            # a bare object is a call only where the reply begins with it
            return f"{self._section(tools, rules, parallel=False)} | /[^ \\t\\r\\n{{](.|\\n)*/"
        opener = form.opening[0]
        opening = (form.begin + "[" * form.listed + form.before).removeprefix(opener)
        first = rules.add(" | ".join(self._call(form, opening, tool, rules) for tool in tools))
        following = rules.add(" | ".join(self._call(form, form.before, tool, rules) for tool in tools))
        more = f"({self._literal(form.between)} {following})*" if form.begin else ""
        end = self._literal("]" * form.listed + form.end)
        rest = regex(opener) if self._control_token(opener) is None else "(?!)"
        free = "/(.|\\n)*/" + (f" & ~/(.|\\n)*{rest}(.|\\n)*/" if rest != "(?!)" else "")
        return f"({self._until(opener, rules)} {first} {more} {end})* {rules.terminal(free)}"

    def _thoughts(self, begun: str, rules: Rules) -> str:
        """The reasoning before a reply."""
        if self._dialect.channels:
            begin, end = self._literal(_ANALYSIS), self._literal("<|start|>assistant")
            return f"({begin} {self._until('<|end|>', rules)} {end})?"
        spans = [span for span in self._dialect.reasoning if begun in ("", span[0])]
        if not spans:
            return ""
        written = [("" if begun else self._literal(begin)) + f" {self._until(end, rules)}" for begin, end in spans]
        space = rules.terminal("/[ \\t\\r\\n]{1,20}/")
        return f"(({' | '.join(written)}) {space}?)" + ("" if begun else "?")

    def _call(self, form: CallForm, before_name: str, tool: Tool, rules: Rules) -> str:
        before, after = self._literal(before_name), self._literal(form.after)
        if form.shape == "object":
            name = self._literal(f'{{"{form.name_key}": {json.dumps(tool.name)}, "{form.arguments_key}": ')
            return f"{before} {name} {_arguments(tool)} {self._literal('}')} {after}"
        name = self._literal(f"{form.name_prefix}{tool.name}") + (" /:[0-9]/" if form.numbered else "")
        if form.shape == "named":
            arguments = self._notated(form, tool, rules) if form.string_quote else _arguments(tool)
            return f"{before} {name} {self._literal(form.name_end)} {arguments} {after}"
        if form.shape == "tagged":
            parameters = rules.in_order(
                tool.parameters, "", lambda key, schema: self._tagged(form, tool, key, schema, rules)
            )
            return f"{before} {name} {self._literal(form.name_end)} {parameters} {after}"
        parameters = rules.in_order(
            tool.parameters, '", "', lambda key, schema: f"{self._literal(f'{key}=')} {_value(schema, tool)}"
        )
        return f'{before} {name} "(" {parameters} ")" {after}'

    def _notated(self, form: CallForm, tool: Tool, rules: Rules) -> str:
        quote = form.string_quote
        if tool.grammar is not None:
            (key,) = tool.parameters["properties"]
            return f'{self._literal(f"{{{key}:{quote}")} {_nested(_lark(tool))} {self._literal(quote)} "}}"'
        notation = Notation(
            tool.parameters,
            rules,
            exact=tool.strict,
            text=lambda terminal: f"{self._literal(quote)} {self._ended(terminal, '', quote, rules)}",
            number=lambda schema: _json(schema, tool),
        )
        try:
            return notation.value({"type": "object", **tool.parameters})
        except Unwritable as error:
            raise _unwritable(tool, "arguments", error) from error

    def _tagged(self, form: CallForm, tool: Tool, key: str, schema: Any, rules: Rules) -> str:
        begin = f"{self._literal(form.parameter_begin)} {self._literal(key)}"
        if tool.grammar is not None:
            return f"{begin} {self._literal(form.key_end)} {_nested(_lark(tool))} {self._literal(form.value_end)}"
        key_end_json = self._literal(form.key_end_json or form.key_end)
        types = types_of(schema, tool.parameters)
        if types and "string" not in types:
            return f"{begin} {key_end_json} {_json(schema, tool)} {self._literal(form.value_end)}"
        texts: list[Any] = []
        others: list[Any] = []
        terminal = None
        try:
            for branch in branches(schema, tool.parameters):
                (texts if is_text(branch) else others).append(branch)
            terminal = text_terminal(texts, () if form.key_end_json else others)
        except Unwritable as error:
            if tool.strict:
                raise _unwritable(tool, f"`{key[:100]}`", error) from error
        text = f"{self._literal(form.key_end)} {self._text_value(form, terminal, rules)}"
        if form.key_end_json and others:
            value = _json({"anyOf": [dict(branch) for branch in others]}, tool)
            text = f"({text} | {key_end_json} {value} {self._literal(form.value_end)})"
        return f"{begin} {text}"

    def _text_value(self, form: CallForm, terminal: str | None, rules: Rules) -> str:
        # a reader takes the mark for the end with and without the white space around it
        end = form.value_end.strip()
        space, rest = form.value_end.split(end)
        space = space if form.key_end.endswith("\n") else ""
        return f"{self._ended(terminal, space, end, rules)} {self._literal(rest)}"

    def _ended(self, terminal: str | None, space: str, end: str, rules: Rules) -> str:
        """A string as ``terminal`` bounds it (None: any), ``space`` and the mark that ends it."""
        if terminal is None:
            return self._until(end, rules)
        if self._control_token(end) is not None:
            return f"{rules.terminal(f'({terminal}) {quoted(space)}')} {self._literal(end)}"
        body = rules.terminal(f"({terminal}) & ~/(.|\\n)*{regex(end)}(.|\\n)*/")
        return rules.add(body, attributes=f"[suffix={quoted(space + end)}]")

    def _until(self, end: str, rules: Rules) -> str:
        """Free text and the mark that ends it."""
        if self._control_token(end) is not None:
            return f"/(.|\\n)*/ {self._literal(end)}"
        return rules.add("/(.|\\n)*/", attributes=f"[suffix={quoted(end)}]")

    def _literal(self, text: str) -> str:
        """``text`` with its control tokens as tokens."""
        pieces, at = [], 0
        for match in self._marks.finditer(text):
            pieces.append(quoted(text[at : match.start()]))
            token = self._control_token(match[0])
            pieces.append("" if token in self._ends else f"<[{token}]>")
            at = match.end()
        return " ".join(filter(None, [*pieces, quoted(text[at:])]))


def _json(schema: Any, tool: Tool) -> str:
    """A value of ``schema``, which may refer to the definitions of the tool's own schema."""
    definitions = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    if isinstance(schema, dict):
        schema = {**definitions, **schema}
    grammar = json_schema_grammar(schema, tool.followed, exact=tool.strict)
    return f"%json {json.dumps(grammar['json_schema'])}"


def _arguments(tool: Tool) -> str:
    """All arguments as one JSON object."""
    if tool.grammar is None:
        return _json(tool.parameters, tool)
    (key,) = tool.parameters["properties"]
    return f"{quoted(f'{{{json.dumps(key)}: ')} {_value({}, tool)} {quoted('}')}"


def _value(schema: Any, tool: Tool) -> str:
    """One argument as JSON; where the tool has a grammar, a string of which the grammar says what is in it."""
    if tool.grammar is None:
        return _json(schema, tool)
    mark, lark = quoted('"'), _lark(tool)
    try:
        return f"{mark} {_nested(quoted_grammar(lark))} {mark}"
    except InvalidRequest as error:
        told = f"`{tool.followed}` of {tool.name}: {error.message}"
        raise type(error)(told, param=tool.followed, told=error.message) from error


def _lark(tool: Tool) -> str:
    assert tool.grammar is not None
    grammar: str = text_grammar(tool.syntax, tool.grammar, tool.followed)["lark_grammar"]
    return grammar


def _nested(grammar: str) -> str:
    return f"%lark {{\n{grammar}\n}}"


def _unwritable(tool: Tool, what: str, error: Unwritable) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"`{tool.followed}`: {what} of {tool.name}, as this model writes calls: {error}",
        param=tool.followed,
        told=str(error),
    )
