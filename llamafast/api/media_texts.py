"""The texts of media in JSON that clients send: where they lie, and how they go back into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from llamafast.chat.prompt.media import MEDIA_PARTS
from llamafast.engine.media import DetachedText

# What stands in the place of a text.
Change = Callable[[str], Any]
# A request as JSON with what a Change makes of the texts of its media; whatever is not well formed stays.
InRequest = Callable[[Any, Change], Any]

# What is copied in one call.
_PIECE = 1 << 20


def in_chat(request: Any, change: Change) -> Any:
    """An InRequest for chat completions."""
    return in_field(request, "messages", lambda messages: _in_messages(messages, change))


def in_field(value: Any, name: str, changed: Callable[[Any], Any]) -> Any:
    """``value`` with another field of that name, where it has one."""
    return {**value, name: changed(value[name])} if isinstance(value, dict) and name in value else value


def in_content(content: Any, change: Change) -> Any:
    """What a message or a tool says, with what ``change`` makes of the texts of media in it."""
    if not isinstance(content, list):
        return content
    return [in_medium(part, change) if _is_medium(part) else part for part in content]


def in_medium(medium: Any, change: Change) -> Any:
    """A part that is a medium, or what a field for media holds; its text lies no deeper than one object in it."""
    if isinstance(medium, str):
        return change(medium)
    if not isinstance(medium, dict):
        return medium
    return {name: _changed_values(value, change) for name, value in medium.items()}


def owned(text: str) -> str:
    """The same text, which does not hold a body that has more in it."""
    if not isinstance(text, DetachedText) or memoryview(text.base64.obj).nbytes == len(text.base64):
        return text
    copy = bytearray(len(text.base64))
    for at in range(0, len(copy), _PIECE):
        copy[at : at + _PIECE] = text.base64[at : at + _PIECE]
    return DetachedText(text, memoryview(copy))


def _in_messages(messages: Any, change: Change) -> Any:
    if not isinstance(messages, list):
        return messages
    return [in_field(message, "content", lambda content: in_content(content, change)) for message in messages]


def _is_medium(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in MEDIA_PARTS


def _changed_values(value: Any, change: Change) -> Any:
    if isinstance(value, dict):
        return {name: change(text) if isinstance(text, str) else text for name, text in value.items()}
    return change(value) if isinstance(value, str) else value


def _written(text: DetachedText) -> msgspec.Raw:
    # base64 is in JSON what it is outside
    return msgspec.Raw(b"".join([msgspec.json.encode(str(text))[:-1], text.base64, b'"']))


# JSON with all of every text.
encode_whole = msgspec.json.Encoder(enc_hook=_written).encode
