"""The arguments of a call as a model writes them → the ``input`` of a tool_use block, which every client can read."""

from __future__ import annotations

import json
import re
from math import isfinite

import msgspec

# In a string and outside of one: what is passed on as it is, and what is looked at whole.
_IN_STRING = re.compile(
    r'(?P<pair>\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|(?P<half>\\u[dD][89a-fA-F]..)|\\.|[^"\\]+|"', re.S
)
_OUTSIDE = re.compile(r'(?P<scalar>[-+.\w]+)|[^-+.\w"]+|"')
# An escape that more text may change.
_UNSURE = re.compile(r"\\(u[dD][89abAB]..(\\(u([dD]([c-fC-F].?)?)?)?)?|u.{0,3})?\Z", re.S)
_SPACE = " \t\n\r"
_NOTHING = msgspec.Raw(b"{}")


class CallInput:
    """The pieces of one JSON value, each as far as it is certain, as the pieces of an object.

    A value that is no object is what ``arguments`` is in one, null is an object of nothing. Numbers beyond a double and
    NaN, which not every client reads, are strings; halves of surrogate pairs are U+FFFD. All else stays as it was
    written; the result does not depend on how the text was cut.
    """

    def __init__(self) -> None:
        self._held = ""
        self._in_string = False
        self._begun = False
        self._end = ""

    def read(self, text: str) -> str:
        return self._read(self._held + text, last=False)

    def rest(self, *, complete: bool) -> str:
        """What was held back; ``complete``: whether the value is."""
        return self._read(self._held, last=True) + (self._end if complete else "")

    def _read(self, text: str, *, last: bool) -> str:
        told: list[str] = []
        at = 0
        while at < len(text):
            found = (_IN_STRING if self._in_string else _OUTSIDE).match(text, at)
            if not last and self._unsure(text, at, found):
                break
            piece = text[at:] if found is None else found[0]
            at += len(piece)
            if piece == '"':
                self._in_string = not self._in_string
            elif found is not None and found.lastgroup == "half":
                piece = "\\ufffd"
            elif found is not None and found.lastgroup == "scalar":
                piece = _finite(piece)
            told.append(self._opened(piece))
        self._held = text[at:]
        return "".join(told)

    def _unsure(self, text: str, at: int, found: re.Match[str] | None) -> bool:
        if self._in_string:
            return text[at] == "\\" and _UNSURE.match(text, at) is not None
        return found is not None and found.lastgroup == "scalar" and found.end() == len(text)

    def _opened(self, piece: str) -> str:
        """``piece`` behind what makes an object of the value that it begins."""
        if self._begun or not piece.strip(_SPACE):
            return piece
        self._begun = True
        if piece.lstrip(_SPACE).startswith("{"):
            return piece
        if piece == "null":
            return "{}"
        self._end = "}"
        return '{"arguments": ' + piece


def _finite(scalar: str) -> str:
    try:
        return scalar if isfinite(float(scalar)) else f'"{scalar}"'
    except ValueError:
        return scalar


def whole_input(pieces: str) -> msgspec.Raw:
    """All that a CallInput told; nothing where the model broke off in the middle of it."""
    try:
        # only whether it is JSON: how large its numbers are is the client's affair
        whole = isinstance(json.loads(pieces, parse_int=str, parse_float=str), dict)
    except (ValueError, RecursionError):
        return _NOTHING
    return msgspec.Raw(pieces.encode()) if whole else _NOTHING
