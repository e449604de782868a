"""What a request asks of the text it is answered with, as data, and the grammar that is made of it.

Planning only gathers it. Everything that reads a client's grammars, patterns and schemas comes after, in a process
that can be ended (``chat.grammar.trial``).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, NamedTuple

from llguidance import LLTokenizer
from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import replace

from llamafast.chat.grammar.calls import CallGrammar
from llamafast.chat.grammar.compiler import Grammar, compiled, grammar_text
from llamafast.chat.grammar.requested import (
    constraint_fields,
    json_schema_grammar,
    requested_grammar,
    text_grammar,
)
from llamafast.chat.grammar.schema import readable
from llamafast.chat.reply.dialects.forms import Dialect
from llamafast.chat.request import ChatTask, Task
from llamafast.chat.tools import Tool
from llamafast.errors import InvalidRequest, UnsupportedParameter

# Of all that one request asks for: some grammars of the largest size.
MAX_BYTES = 1 << 20


class Ask(NamedTuple):
    """``line`` is an Asked in JSON; ``key`` its digest, which no client can make equal to another's."""

    key: bytes
    line: bytes


class Letters(Struct, frozen=True):
    """How a model writes calls and reasoning: its dialect, the control tokens among the dialect's marks, and those that
    end a reply."""

    dialect: Dialect
    marks: dict[str, int]
    ends: tuple[int, ...]


class Asked(Struct, frozen=True, omit_defaults=True):
    """``fields`` are a request's constraint fields by name, ``names`` the client's own for them and for ``tools`` where
    it has others. In a chat, where there are ``letters``, also what a reply may be beside that: see
    ``CallGrammar.reply``."""

    fields: dict[str, Any]
    letters: Letters | None = None
    tools: tuple[Tool, ...] = ()
    forced: bool = False
    parallel: bool = False
    begun: str = ""
    names: dict[str, str] = {}

    def ask(self) -> Ask:
        """Raises InvalidRequest where it is too long or has no form in JSON."""
        try:
            line = encode(self)
        except (RecursionError, UnicodeEncodeError, OverflowError) as error:
            raise InvalidRequest("a grammar or schema is nested too deeply or holds what JSON cannot") from error
        if len(line) > MAX_BYTES:
            raise InvalidRequest(f"the schemas and grammars of this request have more than {MAX_BYTES} bytes together")
        return Ask(blake2b(line, digest_size=32).digest(), line)

    def grammars(self) -> list[Grammar] | None:
        """None: any text. Raises InvalidRequest, UnsupportedParameter or RecursionError."""
        requested = requested_grammar(self.fields, self.names)
        answer = None if requested is None else requested[0]
        if self.letters is None:
            return None if answer is None else [answer]
        calls = CallGrammar(self.letters.dialect, self.letters.marks.get, self.letters.ends)
        tools = [_readable(tool) for tool in self.tools]
        return calls.reply(tools, answer, forced=self.forced, parallel=self.parallel, begun=self.begun)


class Refusal(Struct, frozen=True, omit_defaults=True):
    """An InvalidRequest, or an UnsupportedParameter, as data."""

    message: str
    param: str | None = None
    unsupported: bool = False

    def error(self) -> InvalidRequest:
        kind = UnsupportedParameter if self.unsupported else InvalidRequest
        # behind the field's name it says what is in the schema or grammar
        return kind(self.message, param=self.param, told=self.message.partition(": ")[2])


def asked_of_chat(task: ChatTask, letters: Letters, begun: str) -> Ask | None:
    """``begun`` is the mark of reasoning that the prompt ends with. None where a reply may be any text. Raises
    InvalidRequest."""
    fields, tools, forced = constraint_fields(task.constraints), task.tools.callable, task.tools.forced
    if not (fields or forced or any(tool.constrained for tool in tools)):
        return None
    # what a template reads of a tool does not bind the model
    bare = tuple(replace(tool, definition={}) for tool in tools)
    names = {field: name for field, name in task.names.items() if field.partition(".")[0] in (*fields, "tools")}
    # models that are forced to call often do not know when to end: several calls only where that is asked for
    return Asked(fields, letters, bare, forced, bool(task.parallel), begun, names).ask()


def asked_of_completion(task: Task) -> Ask | None:
    """None where the text may be any. Raises InvalidRequest."""
    fields = constraint_fields(task.constraints)
    return Asked(fields).ask() if fields else None


def written(asked: Asked, tokenizer: LLTokenizer) -> str | Refusal:
    """The text of a grammar that compiles for ``tokenizer``, or why there is none. May take for ever."""
    try:
        grammars = asked.grammars()
        if grammars is None:
            return ""
        text = grammar_text(grammars)
        reason = compiled(tokenizer, text)
        return text if not isinstance(reason, str) else _refusal(asked, tokenizer, reason)
    except InvalidRequest as error:
        return Refusal(error.message, error.param, isinstance(error, UnsupportedParameter))
    except RecursionError:
        return Refusal("a grammar or schema of this request is nested too deeply")


def _refusal(asked: Asked, tokenizer: LLTokenizer, reason: str) -> Refusal:
    """Says what it is that does not compile, in the client's words."""
    requested = requested_grammar(asked.fields, asked.names)
    if requested is not None:
        answer, param = requested
        if not asked.tools:
            return Refusal(f"`{param}` cannot be followed: {reason}", param)
        if isinstance(why := compiled(tokenizer, grammar_text([answer])), str):
            return Refusal(f"`{param}` cannot be followed: {why}", param)
    for tool in asked.tools:
        only = replace(asked, fields={}, tools=(tool,), forced=True, parallel=False).grammars()
        if only is None or not isinstance(within := compiled(tokenizer, grammar_text(only)), str):
            continue
        bare = compiled(tokenizer, grammar_text([_bare(_readable(tool))]))
        why = bare if isinstance(bare, str) else within
        return Refusal(f"`{tool.followed}` of {tool.name} cannot be followed: {why}", tool.followed)
    called = asked.names.get("tools", "tools")
    return Refusal(f"`{called}` cannot be followed together: {reason}", called)


def _bare(tool: Tool) -> Grammar:
    """What a call of ``tool`` follows, without what a dialect puts around it."""
    if tool.grammar is not None:
        return text_grammar(tool.syntax, tool.grammar, tool.followed)
    return json_schema_grammar(tool.parameters, tool.followed, exact=tool.strict)


def _readable(tool: Tool) -> Tool:
    return tool if tool.grammar is not None else replace(tool, parameters=readable(tool.parameters, exact=tool.strict))
