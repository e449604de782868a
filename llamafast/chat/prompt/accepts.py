"""What a chat template can render, found by rendering small conversations and looking for their words in the result.

Templates differ in the forms they take: some refuse a system message, two user messages in a row or a content of parts,
some print tool arguments that are objects and some only strings. Nothing declares it, and a template that does not know
a form mostly leaves it out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from msgspec import Struct

from llamafast.chat.request import Message
from llamafast.errors import InvalidRequest

Render = Callable[..., str]

# Words that no template prints of its own accord.
_A, _B, _C, _RESULT = "qvoxa", "qvoxb", "qvoxc", "qvoxr"
_LONG_ID, _SHORT_ID = "call_0123456789abcdef", "abcdef012"
_TOOL, _KEY = "qvoxt", "qvoxk"
_ARGUMENT_WORD = re.compile(f"qvox(?!{_KEY[-1]})\\w+")


def _tool(properties: Message, **function: Any) -> Message:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": _TOOL, **function, "parameters": parameters}}


_PARAMETER: Message = {"type": "string", "description": "d"}
_NESTED = {"type": "object", "description": "d", "properties": {"qvoxn": {**_PARAMETER, "enum": ["qvoxm"]}}}
_TOOL_DEFINITION = _tool({"qvoxp": _PARAMETER}, description="d")
_BARE_TOOL = _tool({"qvoxp": {"type": "string"}})
_NESTED_TOOL = _tool({"qvoxp": {**_NESTED, "required": ["qvoxn"]}}, description="d")
# JSON that is no object: what a model may write as arguments, too.
_VALUES: tuple[Any, ...] = ([_B], 7, None)
_OWN = object()
# What stands for an answer that nobody gave: nothing, or as little as can be where it may not be empty.
_FILLERS = ("", "...")


class Accepts(Struct, frozen=True, kw_only=True):
    """The forms that a template renders with nothing lost.

    * Instructions. ``system``: a system message may come first; ``system_before_answers``: also where the conversation
      ends with anything but a user message; ``several_systems``: several may come first; ``later_systems``: one may
      come anywhere; ``lone_system``: it may be all there is. ``developer``: that role is known.
    * Turns. ``repeated_users`` and ``repeated_assistants``: two messages of the role in a row; ``assistant_first`` and
      ``call_first``: no user before; ``user_after_results``: no answer between a tool's result and the next user.
      ``filler`` is the text of an answer that nobody gave.
    * Contents. ``parts``: the roles whose content may be a list of text parts; ``strings``: whether it may be a string.
      ``names``: a user's name is printed. ``documents``: which fields of a document are.
    * Tools. ``tools``: their definitions are printed; ``tools_before_answers``: also where the conversation ends with
      anything but a user message; ``bare_tools``: also without descriptions; ``nested_tools``: with the parts of their
      parameters; ``empty_tools``: the template reads the list also where there are none.
    * Calls. ``calls``: tool calls are printed; ``objects``: arguments are objects, not JSON texts; ``text_arguments``:
      or any text; ``value_arguments``: or a list, a number or null; ``long_ids``: a call's id may be other than nine
      letters and digits; ``parallel_calls``: one message may hold several. ``null_with_calls``, ``empty_with_calls``
      and ``text_with_calls``: what the content beside calls may be. ``results``: the role ``tool`` is known;
      ``stray_results``: also where no call precedes, ``parted_results``: or instructions part it from its call.
    """

    system: bool = True
    system_before_answers: bool = True
    several_systems: bool = True
    later_systems: bool = True
    lone_system: bool = True
    developer: bool = False
    repeated_users: bool = True
    repeated_assistants: bool = True
    assistant_first: bool = True
    call_first: bool = True
    user_after_results: bool = True
    filler: str = ""
    strings: bool = True
    parts: frozenset[str] = frozenset()
    names: bool = True
    documents: frozenset[str] = frozenset({"title", "text"})
    tools: bool = True
    tools_before_answers: bool = True
    bare_tools: bool = True
    nested_tools: bool = True
    empty_tools: bool = False
    calls: bool = True
    objects: bool = True
    text_arguments: bool = True
    value_arguments: bool = True
    long_ids: bool = True
    parallel_calls: bool = True
    null_with_calls: bool = False
    empty_with_calls: bool = True
    text_with_calls: bool = True
    results: bool = True
    stray_results: bool = True
    parted_results: bool = True


def probe(source: str, render: Render) -> Accepts:
    """Try ``render(messages, tools=…)`` of the template ``source``; it raises InvalidRequest for what it refuses."""
    trial = _Trial(source, render)
    contents, calls = trial.contents(), trial.calls()
    return Accepts(**contents, **trial.systems(), **trial.turns(), **trial.tools(), **calls)


class _Trial:
    """One template under trial; the later questions build on the answers to the earlier ones."""

    def __init__(self, source: str, render: Render) -> None:
        self._source = source
        self._render = render
        self._no_tools: list[Message] | None = None
        self._strings = True
        self._has_calls = False
        self._call_form: dict[str, Any] = {}
        user, documents = [{"role": "user", "content": _A}], [{"title": _B, "text": _C}]
        plain = self.shows(user) is None or self.shows(user, documents=documents) is None
        self._empty_tools = plain and self.shows(user, tools=[]) is not None
        if self._empty_tools:
            self._no_tools = []
        elif self.shows(user) is None:  # a template that takes nothing without tools
            self._no_tools = [_TOOL_DEFINITION]
        self._tools = self.shows(user, _TOOL, "qvoxp", tools=[_TOOL_DEFINITION]) is not None

    def shows(
        self, messages: Sequence[Message], *words: str, tools: list[Message] | None = None, **variables: Any
    ) -> str | None:
        """The rendered text if all of ``words`` are in it."""
        try:
            text = self._render(messages, tools=self._no_tools if tools is None else tools, **variables)
        except InvalidRequest:
            return None
        return text if all(word in text for word in words) else None

    def takes(self, *messages: Message, with_tools: bool = False) -> bool:
        """Whether every text of ``messages`` is printed."""
        words = {word for message in messages for word in _words(message)}
        return self.shows(messages, *words, tools=self._probed(with_tools)) is not None

    def _probed(self, with_tools: bool) -> list[Message] | None:
        return [_TOOL_DEFINITION] if with_tools and self._tools else None

    def said(self, role: str, text: str, **fields: Any) -> Message:
        content = text if self._strings else [{"type": "text", "text": text}]
        return {"role": role, "content": content, **fields}

    def contents(self) -> dict[str, Any]:
        user = {"role": "user", "content": _A}
        self._strings = self.shows([user], _A) is not None
        parts = frozenset(
            role
            for role in ("system", "user", "assistant", "tool")
            if (text := self.shows(self._with_parts(role), _A, _B, tools=self._probed(role == "tool"))) is not None
            and "'text'" not in text
            and '"text"' not in text
        )
        if not self._strings and not parts:  # a template that prints no content at all
            self._strings = True
        user = self.said("user", _A)
        text = self.shows([user], documents=[{"title": _B, "text": _C}]) or ""
        return {
            "strings": self._strings,
            "parts": parts,
            "names": self.shows([{**user, "name": _B}], _A, _B) is not None,
            "documents": frozenset({"title", "text"} if _B in text else {"text"}) if _C in text else frozenset(),
        }

    def systems(self) -> dict[str, Any]:
        user, system = self.said("user", _A), self.said("system", _B)
        answer, again = self.said("assistant", "qvoxd"), self.said("user", "qvoxe")
        developer = "developer" in self._source and self.takes(self.said("developer", _B), user)
        roles = ["system", "developer"] if developer else ["system"]
        takes = self.takes(system, user)
        called = self._called("qvoxf") if self._has_calls else [answer]
        places = [
            ([user, answer], [again]),
            ([system, user, answer], [again]),
            ([system, user], []),
            ([system, user, *called], []),
        ]
        return {
            "system": takes,
            "system_before_answers": takes and self.takes(system, user, answer) and self.takes(system, user, *called),
            "several_systems": takes and all(self.takes(system, self.said(role, _C), user) for role in roles),
            "later_systems": all(
                self.takes(*before, self.said(role, _C), *after) for role, (before, after) in product(roles, places)
            ),
            "lone_system": self.takes(system),
            "developer": developer,
        }

    def turns(self) -> dict[str, Any]:
        first, second = self.said("user", _A), self.said("user", _B)
        answers = self.said("assistant", _C), self.said("assistant", "qvoxd")
        called = self._called(_C) if self._has_calls else []
        return {
            "repeated_users": self.takes(first, second),
            "repeated_assistants": self.takes(first, *answers, second) and self.takes(first, *answers),
            "assistant_first": self.takes(answers[0], second),
            "call_first": not called or self.takes(*called, second, with_tools=True),
            "user_after_results": self.takes(first, *called, second) and self.takes(first, *called[:1], second),
            "filler": next(
                (text for text in _FILLERS if self.takes(first, self.said("assistant", text), second)), _FILLERS[0]
            ),
        }

    def tools(self) -> dict[str, Any]:
        system, user = self.said("system", _B), self.said("user", _A)
        beside = self.shows([system, user], _B, tools=[_TOOL_DEFINITION]) or self.shows([system, user], _B) is None
        called = self._called(_C) if self._has_calls else [self.said("assistant", _C)]
        return {
            "tools": self._tools and bool(beside),
            "tools_before_answers": self.shows([user, *called], "qvoxp", tools=[_TOOL_DEFINITION]) is not None,
            "bare_tools": self.shows([user], _TOOL, "qvoxp", tools=[_BARE_TOOL]) is not None,
            "nested_tools": self.shows([user], "qvoxn", "qvoxm", tools=[_NESTED_TOOL]) is not None,
            "empty_tools": self._empty_tools,
        }

    def calls(self) -> dict[str, Any]:
        user, again = self.said("user", _A), self.said("user", "qvoxe")
        form = self._first_call_form()
        self._has_calls = form is not None
        if form is None:
            knows = "'tool'" in self._source or '"tool"' in self._source
            results = knows and self.takes(user, self.said("assistant", _B), self._result(_SHORT_ID))
            return {"calls": False, "results": results, "stray_results": results and self._takes_stray(_SHORT_ID)}
        self._call_form = form
        beside = self._called(_B, text="qvoxd")
        broken = self._called(_B, arguments=f"{{{_B}")
        asked, answered = self._called(_B)
        return {
            **form,
            "parallel_calls": self._prints_calls(user, *self._called(_A + "1", _B)),
            "text_with_calls": self._prints_calls(user, *beside, self.said("assistant", _C), again)
            and self._prints_calls(user, *beside),
            "text_arguments": form["objects"] and self._prints_calls(user, *broken),
            "value_arguments": form["objects"]
            and all(self._prints_calls(user, *self._called(_B, arguments=value)) for value in _VALUES),
            "results": self.takes(user, *self._called(_B), with_tools=True),
            "stray_results": self._takes_stray(self._call_id(0)),
            "parted_results": self.takes(user, asked, self.said("system", _C), answered, with_tools=True),
        }

    def _takes_stray(self, call_id: str) -> bool:
        answered = self.said("user", _A), self._result(call_id, named=False)
        return self.takes(*answered) and self.takes(*answered, self.said("user", _B))

    def _first_call_form(self) -> dict[str, Any] | None:
        """The form in which calls are printed; None where they are not in any."""
        user = self.said("user", _A)
        for long_ids, objects in product((True, False), repeat=2):
            form = {"long_ids": long_ids, "objects": objects}
            for null in (True, False):
                self._call_form = {**form, "null_with_calls": null, "empty_with_calls": not null}
                form["null_with_calls" if null else "empty_with_calls"] = self._prints_calls(user, *self._called(_B))
            if form["null_with_calls"] or form["empty_with_calls"]:
                return form
        return None

    def _prints_calls(self, *messages: Message) -> bool:
        """Whether all texts but results are printed, arguments as they should be."""
        words = {word for message in messages for word in _words(message) if word != _RESULT}
        shown = self.shows(messages, *words, tools=self._probed(True))
        calls = next(message for message in messages if "tool_calls" in message)
        wrong = [f"'{_KEY}'", f'\\"{_KEY}\\"', *(["None"] if calls["content"] is None else [])]
        return shown is not None and not any(sign in shown for sign in wrong)

    def _called(self, *words: str, text: str = "", arguments: Any = _OWN) -> list[Message]:
        """A message with a call for each of ``words``, which are in its arguments, and the results."""
        null = not text and not self._call_form["empty_with_calls"]
        asked = self.said("assistant", text)
        objects = self._call_form["objects"]
        calls = [_call(self._call_id(i), word, objects) for i, word in enumerate(words)]
        if arguments is not _OWN:
            calls[0]["function"]["arguments"] = arguments
        asked |= {"tool_calls": calls, **({"content": None} if null else {})}
        return [asked, *(self._result(call["id"]) for call in calls)]

    def _call_id(self, i: int) -> str:
        return f"{(_LONG_ID if self._call_form['long_ids'] else _SHORT_ID)[:-1]}{i}"

    def _result(self, call_id: str, *, named: bool = True) -> Message:
        return self.said("tool", _RESULT, tool_call_id=call_id, **({"name": _TOOL} if named else {}))

    def _with_parts(self, role: str) -> list[Message]:
        """A conversation in which the message of ``role`` has two text parts."""
        parts: Any = [{"type": "text", "text": _A}, {"type": "text", "text": _B}]
        user, message = self.said("user", "q"), {"role": role, "content": parts}
        if role == "system":
            return [message, user]
        if role == "assistant":
            return [user, message, user]
        if role == "tool":
            call = self.said("assistant", "q", tool_calls=[_call(_SHORT_ID, "q", objects=True)])
            return [user, call, {**message, "name": _TOOL, "tool_call_id": _SHORT_ID}]
        return [message]


def _words(message: Message) -> list[str]:
    """The texts of a message and the words in its calls' arguments."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    arguments = [str(call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    return texts + [word for text in arguments for word in _ARGUMENT_WORD.findall(text)]


def _call(call_id: str, word: str, objects: bool) -> Message:
    arguments: Any = {_KEY: word} if objects else f'{{"{_KEY}": "{word}"}}'
    return {"id": call_id, "type": "function", "function": {"name": _TOOL, "arguments": arguments}}
