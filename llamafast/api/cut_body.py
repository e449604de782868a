"""Base64 by the megabyte, left where it is while the JSON around it is decoded.

Decoding JSON is one call, which holds the GIL, and with it the event loop, for as long as it takes: a third of a second
for a clip of 100 MiB. Of a body without its long base64 it takes nothing. That is looked for piece by piece, between
which another thread may run.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Any

from llamafast.engine.media import DetachedText
from llamafast.errors import InvalidRequest

# A text is found where it fills two pieces at least.
_PIECE = 1 << 16
# Shorter bodies are decoded as they are.
_LEAST = 1 << 20
# What may belong to a backslash in front.
_ESCAPED = len("uFFFF")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_"


class CutTexts:
    """Texts that JSON goes without for a while. At the end of a string each leaves a word that nobody can know."""

    def __init__(self) -> None:
        self._secret = token_hex(16)
        self._texts: list[memoryview] = []

    def word(self, text: memoryview) -> bytes:
        """What stands for ``text``, UTF-8 that JSON has no escapes for."""
        self._texts.append(text)
        return f"<{self._secret}:{len(self._texts) - 1}>".encode()

    def detached(self, text: str) -> str:
        """A medium's text as it was, without its word: DetachedText where it is base64, alone or in a data URL."""
        if self._secret not in text:
            return text
        head, rest = self._parted(text)
        # whoever reads anything else, as a URL, takes what it is shown for all of it
        return head + str(rest, "utf-8") if head and head[:5].lower() != "data:" else DetachedText(head, rest)

    def put_back(self, value: Any) -> Any:
        """Any JSON value, with whole texts in place of all words. Raises RecursionError, or InvalidRequest where two
        keys of an object are the same then."""
        if isinstance(value, str):
            if self._secret not in value:
                return value
            head, rest = self._parted(value)
            return head + str(rest, "utf-8")
        if isinstance(value, dict):
            whole = {self.put_back(key): self.put_back(item) for key, item in value.items()}
            if len(whole) != len(value):
                raise InvalidRequest("a key occurs twice in one object")
            return whole
        if isinstance(value, list):
            return [self.put_back(item) for item in value]
        return value

    def _parted(self, text: str) -> tuple[str, memoryview]:
        head, _, number = text.removesuffix(">").rpartition(f"<{self._secret}:")
        return head, self._texts[int(number)]


class CutBody(CutTexts):
    """A body without the long base64 in it: ``rest`` is what is left."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        view = memoryview(body)
        pieces: list[bytes | memoryview] = []
        at = 0
        for start, stop in _runs(body):
            # a string ends with it, and the word: outside of strings it makes no JSON of what was none
            if body[stop : stop + 1] == b'"':
                pieces += [view[at:start], self.word(view[start:stop])]
                at = stop
        self.rest = b"".join([*pieces, view[at:]]) if pieces else body


def cut(body: bytes) -> CutBody | None:
    """None for a body that is decoded as it is."""
    parts = CutBody(body) if len(body) >= _LEAST else None
    return None if parts is None or parts.rest is body else parts


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
