"""What a chat template can render, found by rendering small conversations and looking for their words in the result.

Templates differ in the forms they take: some refuse a system message, two user messages in a row or a content of parts,
some print tool arguments that are objects and some only strings. Nothing declares it, and a template that does not know
a form mostly leaves it out in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from msgspec import Struct

from llamafast.errors import InvalidRequest

Message = dict[str, Any]
Render = Callable[..., str]

# Words that no template prints of its own accord.
_A, _B = "qvoxa", "qvoxb"
_LONG_ID, _SHORT_ID = "call_0123456789abcdef", "abcdef012"
_TOOL = "qvoxt"
_PARAMETER = {"type": "string", "description": "d"}
_TOOL_DEFINITION = {
    "type": "function",
    "function": {
        "name": _TOOL,
        "description": "d",
        "parameters": {"type": "object", "properties": {"qvoxp": _PARAMETER}, "required": ["qvoxp"]},
    },
}


class Accepts(Struct, frozen=True, kw_only=True):
    """The forms that a template renders with nothing lost.

    ``parts``: the roles whose content may be a list of text parts; ``strings``: whether a content may be a string.
    ``null_with_calls`` and ``empty_with_calls``: what the content beside tool calls may be. ``objects``: tool arguments
    are objects, not JSON texts. ``long_ids``: a tool call's id may be other than nine letters and digits.
    ``parallel_calls``: one message may hold several calls.
    """

    system: bool = True
    several_systems: bool = True
    developer: bool = False
    repeated_users: bool = True
    strings: bool = True
    parts: frozenset[str] = frozenset()
    null_with_calls: bool = False
    empty_with_calls: bool = True
    objects: bool = True
    long_ids: bool = True
    parallel_calls: bool = True


def probe(source: str, render: Render) -> Accepts:
    """Try ``render(messages, tools=…)`` of the template ``source``; it raises InvalidRequest for what it refuses."""
    needs_tools = False

    def shows(messages: Sequence[Mapping[str, Any]], *words: str, with_tools: bool = False) -> str | None:
        """The rendered text if all of ``words`` are in it."""
        try:
            text = render(messages, tools=[_TOOL_DEFINITION] if with_tools or needs_tools else None)
        except InvalidRequest:
            return None
        return text if all(word in text for word in words) else None

    user: Message = {"role": "user", "content": _A}
    needs_tools = shows([user]) is None
    strings = shows([user], _A) is not None
    parts = frozenset(
        role
        for role in ("system", "user", "assistant", "tool")
        if (text := shows(_with_parts(role, strings), _A, _B, with_tools=role == "tool")) is not None
        and "'text'" not in text
        and '"text"' not in text
    )
    if not strings and not parts:  # a template that prints no content at all
        strings = True

    def content(text: str) -> str | list[Message]:
        return text if strings else [{"type": "text", "text": text}]

    user, second = {"role": "user", "content": content(_A)}, {"role": "user", "content": content(_B)}
    system = {"role": "system", "content": content(_B)}
    other_system = {"role": "system", "content": content("qvoxc")}
    developer = {"role": "developer", "content": content(_B)}
    has_system = shows([system, user], _A, _B) is not None
    return Accepts(
        system=has_system,
        several_systems=shows([system, other_system, user], _A, _B, "qvoxc") is not None,
        developer="developer" in source and shows([developer, user], _A, _B) is not None,
        repeated_users=shows([user, second], _A, _B) is not None,
        strings=strings,
        parts=parts,
        **_call_forms(user, content, shows),
    )


def _call_forms(
    user: Message, content: Callable[[str], str | list[Message]], shows: Callable[..., str | None]
) -> dict[str, bool]:
    answer = {"role": "tool", "name": _TOOL, "content": content("qvoxr")}

    def conversation(long_ids: bool, objects: bool, text: Any, words: Sequence[str]) -> list[Message]:
        name = _LONG_ID if long_ids else _SHORT_ID
        ids = [f"{name[:-1]}{i}" for i in range(len(words))]
        calls = [_call(call_id, word, objects) for call_id, word in zip(ids, words, strict=True)]
        answers = [{**answer, "tool_call_id": call_id} for call_id in ids]
        return [user, {"role": "assistant", "content": text, "tool_calls": calls}, *answers]

    def renders(long_ids: bool, objects: bool, text: Any, *words: str) -> bool:
        shown = shows(conversation(long_ids, objects, text, words), *words, with_tools=True)
        wrong = ["'qvoxk'", '\\"qvoxk\\"', *(["None"] if text is None else [])]
        return shown is not None and not any(sign in shown for sign in wrong)

    for long_ids, objects in product((True, False), repeat=2):
        null, empty = renders(long_ids, objects, None, _B), renders(long_ids, objects, content(""), _B)
        if null or empty:
            return {
                "long_ids": long_ids,
                "objects": objects,
                "null_with_calls": null,
                "empty_with_calls": empty,
                "parallel_calls": renders(long_ids, objects, content("") if empty else None, _A + "1", _B),
            }
    return {}


def _call(call_id: str, word: str, objects: bool) -> Message:
    arguments: Any = {"qvoxk": word} if objects else f'{{"qvoxk": "{word}"}}'
    return {"id": call_id, "type": "function", "function": {"name": _TOOL, "arguments": arguments}}


def _with_parts(role: str, strings: bool) -> list[Message]:
    """A conversation in which the message of ``role`` has two text parts."""
    parts: Any = [{"type": "text", "text": _A}, {"type": "text", "text": _B}]
    plain: Any = "q" if strings else [{"type": "text", "text": "q"}]
    user = {"role": "user", "content": plain}
    message = {"role": role, "content": parts}
    if role == "system":
        return [message, user]
    if role == "assistant":
        return [user, message, user]
    if role == "tool":
        call = {"role": "assistant", "content": plain, "tool_calls": [_call(_SHORT_ID, "q", objects=True)]}
        return [user, call, {**message, "name": _TOOL, "tool_call_id": _SHORT_ID}]
    return [message]
