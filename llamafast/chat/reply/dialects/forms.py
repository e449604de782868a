"""The nouns of a dialect: what surrounds reasoning and tool calls in the text that a family of models writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from llamafast.chat.json_text import json_text


class CallForm(Struct, frozen=True, kw_only=True, dict=True):
    """How tool calls are written, to the letter, white space included:

        begin CALL between CALL … end

    ``listed`` puts a JSON array's brackets inside ``begin`` and ``end``. What a CALL is depends on ``shape``:

    * ``object``: ``before`` a JSON object of ``name_key`` (a string) and ``arguments_key`` (an object) ``after``
    * ``named``: ``before name_prefix`` NAME ``name_end`` ARGUMENTS ``after``, where ``numbered`` puts ``:`` and the
      call's index behind the name. ARGUMENTS is a JSON object; with ``string_quote`` its strings stand between that
      mark, unescaped, and its keys stand bare.
    * ``tagged``: ``before`` NAME ``name_end``, for each parameter ``parameter_begin`` KEY ``key_end`` VALUE
      ``value_end``, then ``after``. VALUE is bare text for a string and JSON for anything else, in front of which
      ``key_end_json`` stands where it is not empty.
    * ``python``: NAME ``(`` KEY ``=`` VALUE ``, `` … ``)``, the values Python literals

    A grammar that forces a call is written from these. Reading is laxer: white space between marks may be anything,
    calls may be separated by commas or semicolons, brackets and what follows the last argument may be missing, and
    ``loose`` are other texts that a call may begin with, in place of all that precedes its name or its object.
    """

    shape: Literal["object", "named", "tagged", "python"]
    begin: str = ""
    before: str = ""
    after: str = ""
    between: str = ""
    end: str = ""
    listed: bool = False
    name_key: str = "name"
    arguments_key: str = "arguments"
    name_prefix: str = ""
    numbered: bool = False
    name_end: str = ""
    id_begin: str = ""  # a call's id may stand between NAME and name_end, behind this mark
    string_quote: str = ""
    parameter_begin: str = ""
    key_end: str = ""
    key_end_json: str = ""
    value_end: str = ""
    loose: tuple[str, ...] = ()

    @cached_property
    def opening(self) -> tuple[str, ...]:
        """The marks before the first call's name or object; empty for a call that nothing announces."""
        return (*self.begin.split(), *self.before.split())

    @property
    def openers(self) -> tuple[str, ...]:
        """The marks by which a call is recognised within text."""
        return (*self.opening[:1], *self.loose)

    def spelled(self, spell: Callable[[str], str]) -> CallForm:
        """The same form with every mark as ``spell`` has it."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "shape"}
        return replace(self, **{name: spell(mark) for name, mark in fields.items() if isinstance(mark, str)})

    def written(self, calls: Sequence[tuple[str, Any]]) -> str:
        """Calls as a model writes them: each a name and its arguments, an object or a text that is none."""
        texts = [self._written(i, name, arguments) for i, (name, arguments) in enumerate(calls)]
        begin, end = (self.begin + "[", "]" + self.end) if self.listed else (self.begin, self.end)
        return f"{begin}{self.between.join(texts)}{end}"

    def _written(self, index: int, name: str, arguments: Any) -> str:
        if self.shape == "object":
            return f"{self.before}{json_text({self.name_key: name, self.arguments_key: arguments})}{self.after}"
        pairs = arguments if isinstance(arguments, dict) else {"arguments": arguments}
        if self.shape == "python":
            return f"{self.before}{name}({', '.join(f'{key}={value!r}' for key, value in pairs.items())}){self.after}"
        called = f"{self.before}{self.name_prefix}{name}{f':{index}' if self.numbered else ''}{self.name_end}"
        if self.shape == "named":
            return f"{called}{json_text(pairs)}{self.after}"
        return f"{called}{''.join(self._parameter(key, value) for key, value in pairs.items())}{self.after}"

    def _parameter(self, key: str, value: Any) -> str:
        is_text = isinstance(value, str)
        key_end = self.key_end if is_text else self.key_end_json or self.key_end
        return f"{self.parameter_begin}{key}{key_end}{value if is_text else json_text(value)}{self.value_end}"


class Dialect(Struct, frozen=True, kw_only=True):
    """``evidence``: texts that a chat template of this family contains, all of them.

    ``reasoning`` are pairs of marks around reasoning, ``dropped`` marks without meaning for the reader. Where
    ``calls_end_reasoning`` models forget to close their reasoning before they call. ``channels`` is Harmony: a reply
    is a row of messages with headers, and ``forms`` only says how a call is to be written.
    """

    name: str
    evidence: tuple[str, ...] = ()
    reasoning: tuple[tuple[str, str], ...] = (("<think>", "</think>"),)
    forms: tuple[CallForm, ...] = ()
    dropped: tuple[str, ...] = ()
    calls_end_reasoning: bool = False
    channels: bool = False

    @property
    def reasons(self) -> bool:
        """Whether a reply may have more parts than its answer, also where no tools are."""
        return bool(self.reasoning) or self.channels

    def marks(self) -> tuple[str, ...]:
        """Every text that the parser has to see, also where one is a single control token."""
        found = [mark for pair in self.reasoning for mark in pair] + list(self.dropped)
        for form in self.forms:
            fields = [form.begin, form.before, form.after, form.end, form.name_end, form.id_begin]
            fields += [form.parameter_begin, form.key_end, form.key_end_json, form.value_end]
            found += [mark for field in fields for mark in field.split()]
            found += [*form.loose, form.string_quote]
        return tuple(dict.fromkeys(mark for mark in found if mark))
