"""A chat's messages as the client sent them → in the forms that the model's template renders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from typing import Any

from llamafast.chat.accepts import Accepts
from llamafast.errors import InvalidRequest, UnsupportedParameter

Message = dict[str, Any]

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
# The kinds of content part that are text, each with the field that holds it.
_TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_BETWEEN_MESSAGES = "\n\n"
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz012345"


def normalise_messages(messages: Sequence[Mapping[str, Any]], accepts: Accepts) -> list[Message]:
    """The same conversation for a template that ``accepts`` these forms; fields not named here stay.

    The legacy ``function`` role and ``function_call`` become tool results and calls, and a result gets the id and name
    of its call. Where the template needs it, ``developer`` becomes a system message, text parts one string, null
    content the empty one, argument texts objects. Neither the list nor what it holds is changed.
    Raises InvalidRequest for an unknown role or a field of a wrong type, UnsupportedParameter for a content part
    that is not text; ``param`` is the path to the field.
    """
    checked = [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]
    linked = _link_results(checked)
    if not accepts.parallel_calls:
        linked = _one_call_each(linked)
    return _fold([_in_form(message, accepts) for message in linked], accepts)


def _checked(message: Mapping[str, Any], path: str) -> Message:
    """``message`` with content a string, a list of text parts or null, and with calls of one kind."""
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{path}.role must be one of {', '.join(sorted(_ROLES))}", param=f"{path}.role")
    result = {**message, "content": _content(message.get("content"), f"{path}.content")}
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise InvalidRequest(f"{path}.tool_calls must be a list", param=f"{path}.tool_calls")
        result["tool_calls"] = [_checked_call(call, f"{path}.tool_calls[{j}]") for j, call in enumerate(calls)]
    elif (legacy := result.pop("function_call", None)) is not None:
        result["tool_calls"] = [_checked_call({"function": legacy}, f"{path}.function_call")]
    if not result.get("tool_calls"):
        result.pop("tool_calls", None)
    return result


def _content(content: Any, path: str) -> str | list[Message] | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        return [_text_part(part, f"{path}[{j}]") for j, part in enumerate(content)]
    raise InvalidRequest(f"{path} must be a string, a list of content parts or null", param=path)


def _text_part(part: Any, path: str) -> Message:
    if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
        raise InvalidRequest(f"{path} must be an object with a string `type`", param=path)
    field = _TEXT_FIELDS.get(kind)
    if field is None:
        raise UnsupportedParameter(f"{path}: content of type {kind[:64]!r} is not supported yet", param=f"{path}.type")
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidRequest(f"{path}.{field} must be a string", param=f"{path}.{field}")
    return {"type": "text", "text": text}


def _checked_call(call: Any, path: str) -> Message:
    if not isinstance(call, dict):
        raise InvalidRequest(f"{path} must be an object", param=path)
    if isinstance(custom := call.get("custom"), dict):
        rest = {key: value for key, value in call.items() if key != "custom"}
        function: Any = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
        call = {**rest, "type": "function", "function": function}
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{path}.function must be an object with a string `name`", param=f"{path}.function")
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str | dict):
        raise InvalidRequest(f"{path}.function.arguments must be JSON text or an object", param=f"{path}.function")
    if not isinstance(call.get("id"), str | None):
        raise InvalidRequest(f"{path}.id must be a string", param=f"{path}.id")
    return {"type": "function", **call}


def _link_results(messages: list[Message]) -> list[Message]:
    """Tool results with the role, the id and the name of their call; every call with an id."""
    linked: list[Message] = []
    waiting: list[Message] = []
    for message in messages:
        if calls := message.get("tool_calls"):
            waiting = [{**call, "id": call.get("id") or f"call_{len(linked)}_{j}"} for j, call in enumerate(calls)]
            message = {**message, "tool_calls": list(waiting)}
        elif message["role"] in ("tool", "function"):
            message = _linked_result(message, waiting)
        linked.append(message)
    return linked


def _linked_result(message: Message, waiting: list[Message]) -> Message:
    """A result with the facts of its call: the one it names by id, else by name, else the first that waits."""
    key, name = message.get("tool_call_id"), message.get("name")
    by_id = [call for call in waiting if key is not None and call["id"] == key]
    by_name = [call for call in waiting if key is None and call["function"]["name"] == name]
    call = next(iter(by_id or by_name or (waiting if key is None else [])), None)
    result = {**message, "role": "tool"}
    if call is None:
        return result
    waiting.remove(call)
    return {**result, "tool_call_id": call["id"], "name": name or call["function"]["name"]}


def _one_call_each(messages: list[Message]) -> list[Message]:
    """Parallel calls one after the other, each with its result behind it."""
    result: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            result.append(message)
            continue
        answers = []
        while at < len(messages) and messages[at]["role"] == "tool":
            answers.append(messages[at])
            at += 1
        for call in calls:
            result.append({**message, "tool_calls": [call]})
            message = {"role": message["role"], "content": None}
            mine = [answer for answer in answers if answer.get("tool_call_id") == call["id"]]
            result += mine
            answers = [answer for answer in answers if not any(answer is own for own in mine)]
        result += answers
    return result


def _in_form(message: Message, accepts: Accepts) -> Message:
    result = dict(message)
    if result["role"] == "developer" and not accepts.developer:
        result["role"] = "system"
    calls = result.get("tool_calls")
    content = result["content"]
    if isinstance(content, list):
        if result["role"] not in accepts.parts:
            content = "".join(part["text"] for part in content)
    elif calls and accepts.null_with_calls and (content is None or not (content or accepts.empty_with_calls)):
        result["content"] = None
        content = None
    else:
        content = content or ""
    if isinstance(content, str):
        result["content"] = content if accepts.strings else [{"type": "text", "text": content}]
    if calls:
        result["tool_calls"] = [_call_in_form(call, accepts) for call in calls]
    if not accepts.long_ids and isinstance(key := result.get("tool_call_id"), str):
        result["tool_call_id"] = _short_id(key)
    return result


def _call_in_form(call: Message, accepts: Accepts) -> Message:
    function = call["function"]
    arguments = function.get("arguments")
    if accepts.objects:
        arguments = _parsed(arguments) if isinstance(arguments, str) else arguments or {}
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    key = call["id"] if accepts.long_ids else _short_id(call["id"])
    return {**call, "id": key, "function": {**function, "arguments": arguments}}


def _parsed(arguments: str) -> Any:
    """Argument text as a value; text that is no JSON (a model wrote it) stays text."""
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments


def _short_id(key: str) -> str:
    """An id of nine letters and digits for the same call, itself if it is one."""
    if len(key) == 9 and key.isascii() and key.isalnum():
        return key
    digest = blake2b(key.encode(), digest_size=9).digest()
    return "".join(_ID_LETTERS[byte % 32] for byte in digest)


def _fold(messages: list[Message], accepts: Accepts) -> list[Message]:
    """Messages that the template refuses in their place, joined to one it takes."""
    first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    system, rest = messages[:first], messages[first:]
    if not (accepts.several_systems and accepts.system):
        system = _joined(system)
    if system and not accepts.system:
        user, *later = rest if rest and rest[0]["role"] == "user" else [{"role": "user", "content": ""}, *rest]
        system, rest = [], [{**user, "content": _paragraphs(system[0]["content"], user["content"])}, *later]
    if not accepts.repeated_users:
        rest = [
            message
            for role, run in groupby(rest, key=itemgetter("role"))
            for message in (_joined(run) if role == "user" else run)
        ]
    return system + rest


def _joined(messages: Iterable[Message]) -> list[Message]:
    """The first message with the contents of all, in a list; nothing of nothing."""
    kept = list(messages)
    contents = [message["content"] for message in kept]
    return [{**kept[0], "content": reduce(_paragraphs, contents)}] if kept else []


def _paragraphs(first: str | list[Message], second: str | list[Message]) -> str | list[Message]:
    """Two contents with a blank line between them."""
    if not (first and second):
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}{_BETWEEN_MESSAGES}{second}"
    return [*_parts(first), {"type": "text", "text": _BETWEEN_MESSAGES}, *_parts(second)]


def _parts(content: str | list[Message]) -> list[Message]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
