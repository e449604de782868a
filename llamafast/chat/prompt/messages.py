"""A chat's messages as the client sent them → in the forms that the model's template renders."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from llamafast.chat.json_text import json_text
from llamafast.chat.prompt.accepts import Accepts
from llamafast.chat.prompt.folding import BETWEEN_MESSAGES, INSTRUCTIONS, fold, joined, results_first, text_of
from llamafast.chat.prompt.generic_tools import written_result
from llamafast.chat.prompt.media import refusal
from llamafast.chat.reply.dialects.forms import CallForm
from llamafast.chat.reply.dialects.tables import HERMES
from llamafast.chat.request import Message
from llamafast.errors import InvalidRequest, UnsupportedParameter

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
# The kinds of content part that are text, each with the field that holds it.
TEXT_FIELDS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz012345"


def normalise_messages(
    messages: Sequence[Mapping[str, Any]], accepts: Accepts, *, form: CallForm = HERMES, preface: str = ""
) -> list[Message]:
    """The same conversation for a template that ``accepts`` these forms; fields not named here stay.

    The legacy ``function`` role and ``function_call`` become tool results and calls, and a result gets the id and name
    of its call. Where the template needs it, ``developer`` becomes a system message, text parts one string, null
    content the empty one, argument texts objects; names, calls (in ``form``) and results become text; system messages
    and turns that it refuses in their place are joined to a neighbour, or a turn with next to nothing is put between.
    ``preface`` is added to the instructions at the beginning. Neither the list nor what it holds is changed.
    Raises InvalidRequest for an unknown role or a field of a wrong type, UnsupportedParameter for a content part
    that is not text (chat/prompt/media.py); ``param`` is the path to the field.
    """
    checked = [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if preface:
        checked = _with_preface(checked, preface)
    linked = _link_results(checked)
    if not (accepts.parted_results and accepts.later_systems):
        linked = results_first(linked)
    if not accepts.names:
        linked = _named_texts(linked)
    linked = _calls_in_form(linked, accepts, form)
    return fold([_in_form(message, accepts) for message in linked], accepts)


def _with_preface(messages: list[Message], preface: str) -> list[Message]:
    """``preface`` behind the instructions that the conversation begins with."""
    n = next((i for i, message in enumerate(messages) if message["role"] not in INSTRUCTIONS), len(messages))
    if not n:
        return [{"role": "system", "content": preface}, *messages]
    last = messages[n - 1]
    return [*messages[: n - 1], {**last, "content": _paragraphs(last["content"], preface)}, *messages[n:]]


def _checked(message: Mapping[str, Any], path: str) -> Message:
    """``message`` with content a string, a list of text parts or null, and with calls of one kind."""
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"`{path}.role` must be one of {', '.join(sorted(_ROLES))}", param=f"{path}.role")
    for field in ("name", "tool_call_id"):
        if not isinstance(message.get(field), str | None):
            raise InvalidRequest(f"`{path}.{field}` must be a string", param=f"{path}.{field}")
    result = {**message, "content": _content(message.get("content"), f"{path}.content")}
    if isinstance(refusal := message.get("refusal"), str):
        result["content"] = _paragraphs(result["content"], refusal)
    if role == "user" and message.get("content") is None:
        raise InvalidRequest(f"`{path}.content` is required", param=f"{path}.content")
    if message.get("audio") is not None:
        raise UnsupportedParameter(f"{path}.audio is not supported yet", param=f"{path}.audio")
    calls = [] if message.get("tool_calls") is None else message["tool_calls"]
    if not isinstance(calls, list):
        raise InvalidRequest(f"`{path}.tool_calls` must be a list", param=f"{path}.tool_calls")
    result["tool_calls"] = [_checked_call(call, f"{path}.tool_calls[{j}]") for j, call in enumerate(calls)]
    if (legacy := result.pop("function_call", None)) is not None:
        result["tool_calls"].append(_checked_call({"function": legacy}, f"{path}.function_call"))
    if not result["tool_calls"]:
        del result["tool_calls"]
    elif role != "assistant":
        raise InvalidRequest(f"`{path}.tool_calls`: only an assistant calls tools", param=f"{path}.tool_calls")
    return result


def _content(content: Any, path: str) -> str | list[Message] | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        return [_text_part(part, f"{path}[{j}]") for j, part in enumerate(content)]
    raise InvalidRequest(f"`{path}` must be a string, a list of content parts or null", param=path)


def _text_part(part: Any, path: str) -> Message:
    if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
        raise InvalidRequest(f"`{path}` must be an object with a string `type`", param=path)
    field = TEXT_FIELDS.get(kind)
    if field is None:
        raise refusal(kind, path)
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidRequest(f"`{path}.{field}` must be a string", param=f"{path}.{field}")
    return {"type": "text", "text": text}


def _checked_call(call: Any, path: str) -> Message:
    if not isinstance(call, dict):
        raise InvalidRequest(f"`{path}` must be an object", param=path)
    if isinstance(custom := call.get("custom"), dict):
        rest = {key: value for key, value in call.items() if key != "custom"}
        function: Any = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
        call = {**rest, "type": "function", "function": function}
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"`{path}.function` must be an object with a string `name`", param=f"{path}.function")
    arguments = function.get("arguments")
    if arguments is not None and not isinstance(arguments, str | dict):
        raise InvalidRequest(f"`{path}.function.arguments` must be JSON text or an object", param=f"{path}.function")
    if not isinstance(call.get("id"), str | None):
        raise InvalidRequest(f"`{path}.id` must be a string", param=f"{path}.id")
    return {"type": "function", **call}


def _paragraphs(content: str | list[Message] | None, more: str) -> str | list[Message]:
    return joined([content or "", more], BETWEEN_MESSAGES)


def _link_results(messages: list[Message]) -> list[Message]:
    """Tool results with the role, the id and the name of their call; every call with an id."""
    linked: list[Message] = []
    waiting = _WaitingCalls([])
    for message in messages:
        if calls := message.get("tool_calls"):
            calls = [{**call, "id": call.get("id") or f"call_{len(linked)}_{j}"} for j, call in enumerate(calls)]
            waiting = _WaitingCalls(calls)
            message = {**message, "tool_calls": calls}
        elif message["role"] in ("tool", "function"):
            message = {**message, "role": "tool"}
            if (call := waiting.take(message.get("tool_call_id"), message.get("name"))) is not None:
                message |= {"tool_call_id": call["id"], "name": message.get("name") or call["function"]["name"]}
        linked.append(message)
    return linked


class _WaitingCalls:
    """The calls of one message that have no result yet."""

    def __init__(self, calls: Sequence[Message]) -> None:
        self._waiting = dict(enumerate(calls))
        self._by_id: dict[Any, deque[int]] = defaultdict(deque)
        self._by_name: dict[Any, deque[int]] = defaultdict(deque)
        for place, call in self._waiting.items():
            self._by_id[call["id"]].append(place)
            self._by_name[call["function"]["name"]].append(place)

    def take(self, key: Any, name: Any) -> Message | None:
        """The one with this id; without an id the first of this name, else the first of all."""
        if key is not None:
            return self._first(self._by_id, key)
        found = self._first(self._by_name, name)
        return self._waiting.pop(next(iter(self._waiting))) if found is None and self._waiting else found

    def _first(self, places: Mapping[Any, deque[int]], key: Any) -> Message | None:
        queue = places.get(key) if isinstance(key, str) else None
        while queue:
            if (call := self._waiting.pop(queue.popleft(), None)) is not None:
                return call
        return None


def _named_texts(messages: list[Message]) -> list[Message]:
    """Who speaks, in front of what is said. An assistant's name only where there are several: it would learn to begin
    its answers with it."""
    assistants = {message.get("name") for message in messages if message["role"] == "assistant"}
    silent = ("tool", "assistant") if len(assistants) < 2 else ("tool",)
    return [
        {**message, "content": joined([f"{name}: ", message["content"]], "")}
        if message["role"] not in silent
        and message["content"]
        and isinstance(name := message.get("name"), str)
        and name
        else message
        for message in messages
    ]


def _calls_in_form(messages: list[Message], accepts: Accepts, form: CallForm) -> list[Message]:
    """Calls and results as messages that the template prints."""
    if not accepts.calls:
        messages = [_with_written_calls(message, form) for message in messages]
    else:
        if not accepts.parallel_calls:
            messages = _one_call_each(messages)
        if not accepts.text_with_calls:
            messages = [part for message in messages for part in _text_first(message)]
    if not (accepts.results and accepts.stray_results):
        messages = _with_written_results(messages, only_stray=accepts.results)
    return messages


def _with_written_calls(message: Message, form: CallForm) -> Message:
    if "tool_calls" not in message:
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    written = form.written([(function["name"], _value_of(function.get("arguments"))) for function in functions])
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": joined([message["content"] or "", written], "\n")}


def _text_first(message: Message) -> list[Message]:
    """A message with text and calls as one of text and one of calls."""
    if "tool_calls" not in message or not message["content"]:
        return [message]
    calls = message["tool_calls"]
    text = {key: value for key, value in message.items() if key != "tool_calls"}
    return [text, {"role": message["role"], "content": None, "tool_calls": calls}]


def _with_written_results(messages: list[Message], *, only_stray: bool) -> list[Message]:
    """Results as what the user says, those of one turn in one message; or only those that answer no call before."""
    turns: list[Message] = []
    asked: set[Any] = set()
    texts: list[str] = []
    for message in [*messages, None]:
        if message is not None and message["role"] == "tool":
            if not (only_stray and message.get("tool_call_id") in asked):
                texts.append(written_result(text_of(message["content"])))
                continue
        elif message is not None and message["role"] not in INSTRUCTIONS:
            asked = {call["id"] for call in message.get("tool_calls", ())}
        if texts:
            turns.append({"role": "user", "content": "\n".join(texts)})
            texts = []
        if message is not None:
            turns.append(message)
    return turns


def _one_call_each(messages: list[Message]) -> list[Message]:
    """Parallel calls one after the other, each with its result behind it."""
    result: list[Message] = []
    for message, answers in _with_answers(messages):
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            result += [message, *answers]
            continue
        by_id: dict[Any, list[Message]] = {call["id"]: [] for call in calls}
        others: list[Message] = []
        for answer in answers:
            by_id.get(answer.get("tool_call_id"), others).append(answer)
        for call in calls:
            result += [{**message, "tool_calls": [call]}, *by_id.pop(call["id"], ())]
            message = {"role": message["role"], "content": None}
        result += others
    return result


def _with_answers(messages: list[Message]) -> Iterator[tuple[Message, list[Message]]]:
    """Each message but the results behind calls, and these."""
    at = 0
    while at < len(messages):
        end = at + 1
        while messages[at].get("tool_calls") and end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        yield messages[at], messages[at + 1 : end]
        at = end


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
        content = content or (accepts.filler if result["role"] == "assistant" and not calls else "")
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
        arguments = _value_of(arguments)
        taken = accepts.text_arguments if isinstance(arguments, str) else accepts.value_arguments
        if not (isinstance(arguments, dict) or taken):
            arguments = {"arguments": arguments}
    elif not isinstance(arguments, str):
        arguments = json_text(arguments or {})
    key = call["id"] if accepts.long_ids else _short_id(call["id"])
    return {**call, "id": key, "function": {**function, "arguments": arguments}}


def _value_of(arguments: Any) -> Any:
    """Arguments as a value; text that is no JSON (a model wrote it) stays text."""
    if not isinstance(arguments, str):
        return arguments or {}
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
