"""A conversation in Anthropic's turns and blocks → the same as chat messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llamafast.api.media_texts import Change, in_field, in_medium
from llamafast.api.messages.tools import ToolTable
from llamafast.api.sealed import opened
from llamafast.chat.json_text import json_text
from llamafast.chat.prompt.folding import BETWEEN_MESSAGES
from llamafast.chat.prompt.media import MediaParts
from llamafast.chat.request import Message, of_pieces
from llamafast.errors import InvalidRequest, UnsupportedParameter

Json = Mapping[str, Any]

# The first line of some agents' instructions: new in every request, it would part each prompt from the one before.
_BILLING = "x-anthropic-billing-header:"
# What Anthropic's own tools and bookkeeping leave in a conversation: nothing that a prompt has words for.
_SILENT = frozenset(
    {
        "redacted_thinking",
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_listing",
        "container_upload",
        "fallback",
        "tool_removal",
    }
)
_NO_IMAGES = "[image: this model takes no images]"
_NO_DOCUMENTS = "[document: only text is read here]"


class Piece(NamedTuple):
    """A part of what somebody says; what ``is_text`` is a paragraph of its own, media stand where they are."""

    text: str
    is_text: bool = True


def messages_of(
    turns: Sequence[Json],
    system: str | Sequence[Json] | None,
    tools: ToolTable,
    media: MediaParts,
    *,
    sees: bool,
    turns_after_results: bool,
) -> list[Message]:
    """The chat messages that ``turns`` stand for, instructions first.

    Turns of one role in a row are one. What a system turn says later is said where it stands, in the user's turn before
    it; behind a tool's result in a turn of its own with ``turns_after_results``, else at the result's end. No message
    depends on what follows it, so that the next request's prompt extends this one's. ``media`` collects images and
    gives words for them, ``sees``: whether the model takes any.

    Raises InvalidRequest or UnsupportedParameter; ``param`` is the path to the field.
    """
    conversation = _Messages(tools, media, sees=sees, turns_after_results=turns_after_results)
    conversation.instruct(system, "system")
    for i, turn in enumerate(turns):
        conversation.add(turn, f"messages[{i}]")
    return [of_pieces(message) for message in conversation.messages]


def in_request(request: Any, change: Change) -> Any:
    """An InRequest for messages: images may also be in what a tool answers."""
    return in_field(request, "messages", lambda turns: _in_turns(turns, change))


def _in_turns(turns: Any, change: Change) -> Any:
    if not isinstance(turns, list):
        return turns
    return [in_field(turn, "content", lambda content: _in_blocks(content, change)) for turn in turns]


def _in_blocks(blocks: Any, change: Change) -> Any:
    return [_in_block(block, change) for block in blocks] if isinstance(blocks, list) else blocks


def _in_block(block: Any, change: Change) -> Any:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "image":
        return in_medium(block, change)
    if kind == "tool_result":
        return in_field(block, "content", lambda content: _in_blocks(content, change))
    return block


class _Messages:
    """``messages`` have their texts in pieces."""

    def __init__(self, tools: ToolTable, media: MediaParts, *, sees: bool, turns_after_results: bool) -> None:
        self.messages: list[Message] = []
        self._tools = tools
        self._media = media
        self._sees = sees
        self._turns_after_results = turns_after_results
        # ids, and which in the conversation the call is
        self._called: dict[str, int] = {}
        self._n_calls = 0

    def instruct(self, content: Any, path: str) -> None:
        """Instructions before anything else was said are one message."""
        text = self._instructions(content, path)
        if text and self.messages:
            _add(self.messages[0], text)
        elif text:
            self.messages.append({"role": "system", "content": [text]})

    def add(self, turn: Json, path: str) -> None:
        role = turn.get("role")
        content, where = turn.get("content"), f"{path}.content"
        if content is None:
            raise InvalidRequest(f"`{where}` must be a string or a list of blocks", param=where)
        if role == "user":
            self._user(content, where)
        elif role == "assistant":
            self._assistant(content, where)
        elif role == "system" and (not self.messages or self.messages[-1]["role"] == "system"):
            self.instruct(content, where)
        elif role == "system":
            self._remind(self._instructions(content, where))
        else:
            raise InvalidRequest(f"`{path}.role` must be user, assistant or system", param=f"{path}.role")

    def _instructions(self, content: Any, path: str) -> str:
        if content is None or isinstance(content, str):
            return _without_billing(content or "")
        pieces = (piece for block, where in _blocks(content, path) for piece in self._pieces(block, where))
        return _joined(Piece(_without_billing(piece.text), piece.is_text) for piece in pieces)

    def _remind(self, text: str) -> None:
        if not text:
            return
        reminder = f"<system-reminder>\n{text}\n</system-reminder>"
        last = self.messages[-1]
        if last["role"] == "tool" and not self._turns_after_results:
            _add(last, reminder)
        else:
            self._say(reminder)

    def _say(self, text: str) -> None:
        """More of the user's turn, or a new one."""
        last = self.messages[-1] if self.messages else None
        if last is None or last["role"] != "user":
            last = {"role": "user", "content": []}
            self.messages.append(last)
        _add(last, text)

    def _user(self, content: Any, path: str) -> None:
        """Results come before whatever else is said: they answer the turn before. They are in the order of their calls,
        in which templates have them, so that media are in the order of the prompt."""
        blocks = list(_blocks(content, path))
        results = [(block, where) for block, where in blocks if block["type"] == "tool_result"]
        for block, where in sorted(results, key=lambda result: self._called.get(str(result[0].get("tool_use_id")), 0)):
            self._result(block, where)
        others = (self._pieces(block, where) for block, where in blocks if block["type"] != "tool_result")
        text = _joined(piece for pieces in others for piece in pieces)
        if text or not results:
            self._say(text)

    def _result(self, block: Json, path: str) -> None:
        call_id = _string(block, "tool_use_id", path)
        if call_id not in self._called:
            where = f"{path}.tool_use_id"
            raise InvalidRequest(f"`{where}`: no call has the id {call_id[:64]!r}", param=where)
        blocks = _blocks(block.get("content"), f"{path}.content")
        pieces = (piece for inner, where in blocks for piece in self._pieces(inner, where, in_result=True))
        result: Message = {"role": "tool", "tool_call_id": call_id, "content": []}
        _add(result, _joined(pieces))
        self.messages.append(result)

    def _assistant(self, content: Any, path: str) -> None:
        last = self.messages[-1] if self.messages else None
        turn: Message = {"role": "assistant", "content": []}
        if last is not None and last["role"] == "assistant":
            turn = last
        for block, where in _blocks(content, path):
            kind = block["type"]
            if kind == "thinking":
                if thought := _string(block, "thinking", where) or opened(block.get("signature")):
                    turn.setdefault("reasoning_content", []).append(thought)
            elif kind == "tool_use":
                turn.setdefault("tool_calls", []).append(self._call(block, where))
            else:
                turn["content"] += (piece.text for piece in self._pieces(block, where) if piece.text)
        if turn is not last and (turn["content"] or len(turn) > 2):
            self.messages.append(turn)

    def _call(self, block: Json, path: str) -> Message:
        call_id, name = _string(block, "id", path), _string(block, "name", path)
        given = block.get("input", {})
        if not isinstance(given, dict):
            raise InvalidRequest(f"`{path}.input` must be an object", param=f"{path}.input")
        self._n_calls += 1
        self._called[call_id] = self._n_calls
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": json_text(given)}}

    def _pieces(self, block: Json, path: str, *, in_result: bool = False) -> Iterator[Piece]:
        """What a block says. Raises InvalidRequest for one that does not belong there."""
        kind = block["type"]
        if kind == "text":
            yield Piece(_string(block, "text", path))
        elif kind == "image":
            yield self._image(block, path, in_result=in_result)
        elif kind == "document":
            yield Piece(self._document(block, path, in_result=in_result))
        elif kind == "search_result":
            about = [f"{name.capitalize()}: {_string(block, name, path)}" for name in ("title", "source")]
            text = self._inner(block.get("content"), f"{path}.content", in_result=in_result)
            yield Piece("\n".join(["<search_result>", *about, "", text, "</search_result>"]))
        elif kind == "tool_reference" and in_result:
            yield Piece(self._tools.told(_string(block, "tool_name", path)))
        elif kind == "tool_addition":
            yield Piece(self._added(block, path))
        elif kind == "compaction":
            yield Piece(block["content"] if isinstance(block.get("content"), str) else "")
        elif kind not in _SILENT and not kind.endswith("_tool_result"):
            raise InvalidRequest(
                f"`{path}.type`: a block of type {kind[:64]!r} has no place here", param=f"{path}.type"
            )

    def _inner(self, content: Any, path: str, *, in_result: bool) -> str:
        """What is in a block that holds others. Raises InvalidRequest for one that could hold more."""
        pieces: list[Piece] = []
        for block, where in _blocks(content, path):
            if block["type"] not in ("text", "image"):
                told = f"`{where}.type`: only text and images have a place here"
                raise InvalidRequest(told, param=f"{where}.type")
            pieces += self._pieces(block, where, in_result=in_result)
        return _joined(pieces)

    def _image(self, block: Json, path: str, *, in_result: bool) -> Piece:
        if in_result and not self._sees:
            # a refusal would end the conversation: the result stays in it
            return Piece(_NO_IMAGES)
        source = block.get("source")
        if isinstance(source, dict) and source.get("type") == "file":
            where = f"{path}.source.type"
            raise UnsupportedParameter(f"`{where}`: files are not kept here; send the image itself", param=where)
        return Piece(self._media.word(block, path) or "", is_text=False)

    def _document(self, block: Json, path: str, *, in_result: bool) -> str:
        given = block.get("source")
        source: Json = given if isinstance(given, dict) else {}
        kind = source.get("type")
        if kind == "text":
            text = _string(source, "data", f"{path}.source")
        elif kind == "content":
            text = self._inner(source.get("content"), f"{path}.source.content", in_result=in_result)
        elif in_result:
            return _NO_DOCUMENTS
        else:
            where = f"{path}.source.type"
            raise UnsupportedParameter(f"`{where}`: of documents only text and content are read here", param=where)
        names = ("title", "context")
        about = [f"{name.capitalize()}: {block[name]}" for name in names if isinstance(block.get(name), str)]
        return "\n".join(["<document>", *about, *([""] if about else []), text, "</document>"])

    def _added(self, block: Json, path: str) -> str:
        tool = block.get("tool")
        if not isinstance(tool, dict) or tool.get("type") != "tool_reference":
            where = f"{path}.tool.type"
            raise UnsupportedParameter(f"`{where}`: only tools of the request's `tools` can be added", param=where)
        return self._tools.told(_string(tool, "name", f"{path}.tool"))


def _blocks(content: Any, path: str) -> Iterator[tuple[Json, str]]:
    """Each block of ``content`` with its path; a string is one of text. Raises InvalidRequest for what is none."""
    if content is None:
        return
    if isinstance(content, str):
        yield {"type": "text", "text": content}, path
        return
    if not isinstance(content, list):
        raise InvalidRequest(f"`{path}` must be a string or a list of blocks", param=path)
    for j, block in enumerate(content):
        where = f"{path}[{j}]"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise InvalidRequest(f"`{where}` must be an object with a string `type`", param=where)
        yield block, where


def _add(message: Message, text: str) -> None:
    """A paragraph more."""
    if text:
        message["content"] += [BETWEEN_MESSAGES, text] if message["content"] else [text]


def _joined(pieces: Iterator[Piece] | Sequence[Piece]) -> str:
    text, behind_text = "", False
    for piece in pieces:
        if piece.text:
            text += (BETWEEN_MESSAGES if behind_text and piece.is_text else "") + piece.text
            behind_text = piece.is_text
    return text


def _without_billing(text: str) -> str:
    first, _, rest = text.partition("\n")
    return rest.lstrip("\n") if first.startswith(_BILLING) else text


def _string(owner: Json, field: str, path: str) -> str:
    value = owner.get(field)
    if not isinstance(value, str):
        raise InvalidRequest(f"`{path}.{field}` must be a string", param=f"{path}.{field}")
    return value
