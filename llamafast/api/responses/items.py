"""A conversation as Responses items → the same as chat messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llamafast.api.media_texts import Change, in_content, in_field, in_medium
from llamafast.api.responses.client_tools import CLIENT_TOOLS, arguments_of
from llamafast.api.responses.compaction import summary_of
from llamafast.api.responses.tools import chat_name, custom_arguments
from llamafast.chat.json_text import json_text
from llamafast.chat.prompt.media import MediaParts, refusal
from llamafast.chat.request import Message, of_pieces
from llamafast.errors import InvalidRequest

Item = dict[str, Any]

_ROLES = frozenset({"user", "assistant", "system", "developer"})
_INSTRUCTIONS = frozenset({"system", "developer"})
_TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}
# What OpenAI's own tools were asked and answered: the fields of an item with the call's arguments and its result.
_HOSTED = {
    "code_interpreter_call": ("code", "outputs"),
    "file_search_call": ("queries", "results"),
    "mcp_call": ("arguments", "output"),
    "web_search_call": ("action", "results"),
}
# Those that answer with a picture, and its field.
_PICTURES = {"computer_call_output": "output", "image_generation_call": "result"}
# OpenAI's bookkeeping: nothing that a prompt has words for.
_SILENT = frozenset(
    {
        "additional_tools",
        "compaction_trigger",
        "computer_call",
        "configuration_update",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_list_tools",
        "program",
        "program_output",
        "tool_search_call",
        "tool_search_output",
    }
)
_CLIENT_CALLS = {f"{name}_call": name for name in CLIENT_TOOLS}
_OUTPUTS = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
    }
)
# The field of an item that may hold media, and how they lie in it.
_MEDIA: dict[str, tuple[str, Callable[[Any, Change], Any]]] = {
    "message": ("content", in_content),
    **dict.fromkeys(_OUTPUTS, ("output", in_content)),
    **{kind: (field, in_medium) for kind, field in _PICTURES.items()},
}


def messages_of(
    items: Sequence[Item], instructions: str | None = None, n_before: int = 0, media: MediaParts | None = None
) -> list[Message]:
    """The chat messages that ``items`` stand for, ``instructions`` first.

    What one turn of the model left behind (reasoning, text, calls) becomes one message again, as the template wrote
    it when the model went on from there. The first ``n_before`` items come from earlier responses: paths of errors
    count from after them. ``media`` collects what is no text and gives words for it; without it only text is taken.
    Raises InvalidRequest or UnsupportedParameter; ``param`` is the path to the field.
    """
    conversation = _Messages(media or MediaParts((), str))
    if instructions:
        conversation.instruct(instructions)
    for i, item in enumerate(items):
        conversation.add(item, f"input[{i - n_before}]")
    return [of_pieces(message) for message in conversation.messages]


def in_request(request: Any, change: Change) -> Any:
    """An InRequest for responses."""
    return in_field(request, "input", lambda items: _in_items(items, change))


def in_item(item: Item, change: Change) -> Item:
    """``item`` with what ``change`` makes of the texts of media that ``messages_of`` collects of it. What is stored is
    found again by this: it may learn to find more, not less."""
    kind = item.get("type", "message")
    if not isinstance(kind, str) or kind not in _MEDIA:
        return item
    name, inside = _MEDIA[kind]
    if name not in item or (kind in _OUTPUTS and not _are_parts(item[name])):
        return item
    return {**item, name: inside(item[name], change)}


def _in_items(items: Any, change: Change) -> Any:
    if not isinstance(items, list):
        return items
    return [in_item(item, change) if isinstance(item, dict) else item for item in items]


def _are_parts(output: Any) -> bool:
    return isinstance(output, list) and all(isinstance(part, dict) and "type" in part for part in output)


class _Messages:
    """``messages`` have their texts in pieces, of which none is empty where more may follow."""

    def __init__(self, media: MediaParts) -> None:
        self._media = media
        self.messages: list[Message] = []
        self._names: dict[str, str] = {}

    def instruct(self, text: str, role: str = "system") -> None:
        """Instructions before anything else was said are one message: many templates take a system message only
        where it comes first."""
        if len(self.messages) == 1 and self.messages[0]["role"] in _INSTRUCTIONS:
            self.messages[0]["content"].append(f"\n\n{text}")
        else:
            self.messages.append({"role": role, "content": [text]})

    def add(self, item: Item, path: str) -> None:
        kind = item.get("type", "message")
        if not isinstance(kind, str):
            raise InvalidRequest(f"`{path}.type` must be a string", param=f"{path}.type")
        if kind == "message":
            self._message(item, path)
        elif kind == "reasoning":
            self._reasoning(item, path)
        elif kind in ("function_call", "custom_tool_call"):
            namespace = item.get("namespace")
            name = chat_name(_string(item, "name", path), namespace if isinstance(namespace, str) else None)
            custom = kind == "custom_tool_call"
            text = _string(item, "input" if custom else "arguments", path)
            self._call(item, path, name, custom_arguments(text) if custom else text)
        elif kind in _CLIENT_CALLS:
            self._client_call(item, path, _CLIENT_CALLS[kind])
        elif kind in _OUTPUTS:
            self._output(item, path)
        elif kind in _HOSTED:
            self._hosted(item, kind, *_HOSTED[kind])
        elif kind in _PICTURES:
            self._picture(item, path, _PICTURES[kind])
        elif kind == "compaction":
            self._compaction(item)
        elif kind not in _SILENT:
            raise InvalidRequest(f"`{path}`: there is no item of type {kind[:64]!r}", param=f"{path}.type")

    def _message(self, item: Item, path: str) -> None:
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise InvalidRequest(f"`{path}.role` must be one of {', '.join(sorted(_ROLES))}", param=f"{path}.role")
        if role == "user" and item.get("content") is None:
            raise InvalidRequest(f"`{path}.content` is required", param=f"{path}.content")
        text = self._content(item.get("content"), f"{path}.content")
        if role in _INSTRUCTIONS:
            self.instruct(text, role)
        elif role == "user":
            self.messages.append({"role": "user", "content": [text]})
        else:
            turn = self._turn(new=self._open_turn() is None or self._has_spoken())
            turn["content"] += [text] if text else []
            if isinstance(item.get("phase"), str):
                turn["phase"] = item["phase"]

    def _reasoning(self, item: Item, path: str) -> None:
        text = "".join(self._texts(item.get("content"), f"{path}.content", MediaParts((), str)))
        text = text or "\n".join(self._texts(item.get("summary"), f"{path}.summary", MediaParts((), str)))
        if text:
            turn = self._open_turn()
            turn = self._turn(new=turn is None or bool(turn["content"]) or "tool_calls" in turn)
            turn.setdefault("reasoning_content", []).append(text)

    def _call(self, item: Item, path: str, name: str, arguments: str) -> None:
        self._add_call(_call_id(item, path), name, arguments)

    def _add_call(self, call_id: str, name: str, arguments: str) -> None:
        self._names[call_id] = name
        function = {"name": name, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        self._turn(new=self._open_turn() is None).setdefault("tool_calls", []).append(call)

    def _compaction(self, item: Item) -> None:
        """Another server's says nothing here."""
        summary = summary_of(item.get("encrypted_content"))
        if summary is not None:
            self.instruct(summary)

    def _client_call(self, item: Item, path: str, name: str) -> None:
        field = CLIENT_TOOLS[name].field
        given = item.get(field)
        if not isinstance(given, dict):
            raise InvalidRequest(f"`{path}.{field}` must be an object", param=f"{path}.{field}")
        self._call(item, path, name, arguments_of(name, given))

    def _hosted(self, item: Item, kind: str, asked: str, answered: str) -> None:
        """A call and its result, as far as the item tells them."""
        given = item.get(asked)
        if given is None:
            return
        name = item.get("name") if kind == "mcp_call" else None
        name = name if isinstance(name, str) else kind.removesuffix("_call")
        call_id = item["id"] if isinstance(item.get("id"), str) else f"call_{len(self.messages)}"
        arguments = given if asked == "arguments" and isinstance(given, str) else json_text({asked: given})
        self._add_call(call_id, name, arguments)
        result = next((item[field] for field in (answered, "error", "status") if item.get(field) is not None), "")
        self._add_result(call_id, name, result if isinstance(result, str) else json_text(result))

    def _output(self, item: Item, path: str) -> None:
        call_id = _call_id(item, path)
        name = self._names.get(call_id)
        if name is None:
            raise InvalidRequest(f"`{path}`: no call has the id {call_id[:64]!r}", param=f"{path}.call_id")
        output = item.get("output")
        text = self._output_text(item.get("status") if output is None else output, f"{path}.output")
        self._add_result(call_id, name, text)

    def _add_result(self, call_id: str, name: str, text: str) -> None:
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": name, "content": [text]})

    def _picture(self, item: Item, path: str, field: str) -> None:
        """What a tool of OpenAI's saw or drew, as something that the user shows."""
        given = item.get(field)
        if given is None:
            return
        part = given if isinstance(given, dict) else {"image_url": given}
        word = self._media.word({**part, "type": "input_image"}, f"{path}.{field}")
        self.messages.append({"role": "user", "content": [word]})

    def _content(self, content: Any, path: str) -> str:
        return content if isinstance(content, str) else "".join(self._texts(content, path))

    def _output_text(self, output: Any, path: str) -> str:
        """A tool's result: text, parts, or whatever else it is as JSON."""
        if _are_parts(output):
            return "".join(self._texts(output, path))
        return output if isinstance(output, str) else json_text(output)

    def _texts(self, parts: Any, path: str, media: MediaParts | None = None) -> Iterator[str]:
        media = media or self._media
        if parts is None:
            return
        if not isinstance(parts, list):
            raise InvalidRequest(f"`{path}` must be a string or a list of parts", param=path)
        for j, part in enumerate(parts):
            where = f"{path}[{j}]"
            if not isinstance(part, Mapping) or not isinstance(kind := part.get("type"), str):
                raise InvalidRequest(f"`{where}` must be an object with a string `type`", param=where)
            if (word := media.word(part, where)) is not None:
                yield word
            elif kind in _TEXT_PARTS:
                yield _string(part, _TEXT_PARTS[kind], where)
            else:
                raise refusal(kind, where)

    def _open_turn(self) -> Message | None:
        """The model's turn that the conversation ends with."""
        return self.messages[-1] if self.messages and self.messages[-1]["role"] == "assistant" else None

    def _has_spoken(self) -> bool:
        """Whether the open turn is complete with its text. Text beside calls belongs to their turn, as the calls'
        results have to follow it."""
        turn = self.messages[-1]
        return bool(turn["content"]) and "tool_calls" not in turn

    def _turn(self, *, new: bool) -> Message:
        if new:
            self.messages.append({"role": "assistant", "content": []})
        return self.messages[-1]


def _call_id(item: Item, path: str) -> str:
    # a local shell's output names its call by ``id``
    field = "id" if item.get("type") == "local_shell_call_output" and "call_id" not in item else "call_id"
    return _string(item, field, path)


def _string(item: Mapping[str, Any], field: str, path: str) -> str:
    value = item.get(field)
    if not isinstance(value, str):
        raise InvalidRequest(f"`{path}.{field}` must be a string", param=f"{path}.{field}")
    return value
