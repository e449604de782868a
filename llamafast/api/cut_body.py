"""Base64 by the megabyte, left where it is while the JSON around it is decoded.

Decoding JSON is one call, which holds the GIL, and with it the event loop, for as long as it takes: a third of a second
for a clip of 100 MiB. Of a body without its long base64 it takes nothing. That is looked for piece by piece, between
which another thread may run.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Any

from llamafast.chat.prompt.media import MEDIA_PARTS
from llamafast.engine.media import DetachedText

# A text is found where it fills two pieces at least.
_PIECE = 1 << 16
# Shorter bodies are decoded as they are.
_LEAST = 1 << 20
# What may belong to a backslash in front.
_ESCAPED = len("uFFFF")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_"


class CutBody:
    """A body without the long base64 in it: ``rest`` is what is left, with words in its place that nobody can know."""

    def __init__(self, body: bytes) -> None:
        self._body = memoryview(body)
        self._secret = token_hex(16)
        self._places: list[tuple[int, int]] = []
        pieces: list[bytes | memoryview] = []
        at = 0
        for start, stop in _runs(body):
            # a string ends with it, and the word: outside of strings it makes no JSON of what was none
            if body[stop : stop + 1] == b'"':
                pieces += [self._body[at:start], f"<{self._secret}:{len(self._places)}>".encode()]
                self._places.append((start, stop))
                at = stop
        self.rest = b"".join([*pieces, self._body[at:]]) if pieces else body

    def put_back_chat(self, request: Any) -> Any:
        """A chat request, ``rest`` as JSON, with all texts as the client wrote them; those of media in messages'
        contents as DetachedText. Raises RecursionError."""
        messages = request.get("messages") if isinstance(request, dict) else None
        if not self._places or not isinstance(messages, list):
            return self.put_back(request)
        others = {key: self.put_back(value) for key, value in request.items() if key != "messages"}
        return {**others, "messages": [self._message(message) for message in messages]}

    def _message(self, message: Any) -> Any:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            return self.put_back(message)
        others = {key: self.put_back(value) for key, value in message.items() if key != "content"}
        return {**others, "content": [self.put_back(part, of_medium=_is_medium(part)) for part in content]}

    def put_back(self, value: Any, *, of_medium: bool = False) -> Any:
        """Any JSON value of ``rest``."""
        if not self._places:
            return value
        if isinstance(value, str):
            return self._whole(value, of_medium=of_medium) if self._secret in value else value
        if isinstance(value, dict):
            return {self.put_back(key): self.put_back(item, of_medium=of_medium) for key, item in value.items()}
        if isinstance(value, list):
            return [self.put_back(item, of_medium=of_medium) for item in value]
        return value

    def _whole(self, text: str, *, of_medium: bool) -> str:
        head, _, number = text.removesuffix(">").rpartition(f"<{self._secret}:")
        start, stop = self._places[int(number)]
        base64 = self._body[start:stop]
        return DetachedText(head, base64) if of_medium else head + str(base64, "ascii")


def _is_medium(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in MEDIA_PARTS


def cut(body: bytes) -> CutBody | None:
    """None for a body that is decoded as it is."""
    return CutBody(body) if len(body) >= _LEAST else None


def _runs(body: bytes) -> list[tuple[int, int]]:
    """From where to where nothing but the alphabet of base64 fills pieces."""
    runs: list[tuple[int, int]] = []
    start = -1
    for at in range(0, len(body), _PIECE):
        piece = body[at : at + _PIECE]
        if not piece.translate(None, _ALPHABET):
            start = at if start < 0 else start
            continue
        if start >= 0 and at - start >= 2 * _PIECE:
            runs.append((_beginning(body, start), at + len(piece) - len(piece.lstrip(_ALPHABET))))
        start = -1
    return runs


def _beginning(body: bytes, start: int) -> int:
    before = body[max(0, start - _PIECE) : start]
    first = start - len(before) + len(before.rstrip(_ALPHABET))
    # an escape's letter and digits are its own
    return first + _ESCAPED if body[first - 1 : first] == b"\\" else first
