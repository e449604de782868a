"""Text in regions: delimiters open and close them, and what stands in no other belongs to the implicit one, if any.

The rules are those of the ``response_template`` of Hugging Face's ``transformers``. Inside an explicit region only its
own end is looked for; outside, every region's beginning and the implicit region's end. The earliest match counts, then
the longest, then beginnings before ends, then the name. Text is passed on as soon as no delimiter can begin in it,
which the ``regex`` package's partial matching tells, so that the result does not depend on how the text was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import regex

# Delimiters may look behind: so much of the text before the current place is kept.
_BEHIND = 256
_COMPACT_FROM = 4 * _BEHIND


class Delimiter(NamedTuple):
    """``growing``: whether a match that reaches the end of the text so far may become a longer one."""

    pattern: regex.Pattern[str]
    growing: bool

    @classmethod
    def of_literals(cls, literals: Sequence[str], *, left: Sequence[str] = ()) -> Delimiter:
        """Any of ``literals``, the longest that fits, or the place where one of ``left`` stands, which stays text."""
        growing = any(a != b and a.startswith(b) for a in literals for b in literals)
        found = [_any_of(literals)] if literals else []
        found += [f"(?={_any_of(left)})"] if left else []
        return cls(regex.compile("|".join(found), regex.DOTALL), growing)

    @classmethod
    def blank_then(cls, literals: Sequence[str]) -> Delimiter:
        """Any of ``literals`` and the white space before it."""
        return cls(regex.compile(rf"\s*(?:{_any_of(literals)})", regex.DOTALL), growing=False)

    @classmethod
    def of_pattern(cls, pattern: str) -> Delimiter:
        """Raises regex.error."""
        return cls(regex.compile(pattern, regex.DOTALL), growing=True)


def _any_of(literals: Sequence[str]) -> str:
    return "|".join(map(regex.escape, sorted(set(literals), key=len, reverse=True)))


class Region(NamedTuple):
    """``opening`` is None for the implicit region; a region without ``closing`` ends with the text."""

    name: str
    opening: Delimiter | None
    closing: Delimiter | None


class Piece(NamedTuple):
    """A part of the text: where a region opens or closes, its delimiter, else what it holds.

    ``captures`` are the named groups of an opening delimiter.
    """

    kind: Literal["open", "text", "close"]
    region: str | None
    text: str
    captures: dict[str, str]


class _Watched(NamedTuple):
    kind: Literal["open", "close"]
    region: str
    delimiter: Delimiter


class RegionScanner:
    """Cuts text into Pieces. ``region`` None in a Piece: text that belongs nowhere."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._explicit = {region.name: region for region in regions if region.opening is not None}
        self._implicit = next((region for region in regions if region.opening is None), None)
        self._outside = [_Watched("open", region.name, region.opening) for region in regions if region.opening]
        if self._implicit is not None and self._implicit.closing is not None:
            self._outside.append(_Watched("close", self._implicit.name, self._implicit.closing))
        self._current: Region | None = None
        self._text = ""
        self._at = 0

    @property
    def n_held(self) -> int:
        """The characters that may yet be part of a delimiter."""
        return len(self._text) - self._at

    def feed(self, text: str) -> list[Piece]:
        """What became certain with this text."""
        self._text += text
        pieces: list[Piece] = []
        while (found := self._next(ended=False, pieces=pieces)) is not None:
            pieces.append(found)
        if self._at > _COMPACT_FROM:
            self._text, self._at = self._text[self._at - _BEHIND :], _BEHIND
        return pieces

    def finish(self) -> list[Piece]:
        """The rest: no text will follow. An explicit region that is open is closed by an empty delimiter."""
        pieces: list[Piece] = []
        while (found := self._next(ended=True, pieces=pieces)) is not None:
            pieces.append(found)
        if self._current is not None:
            pieces.append(Piece("close", self._current.name, "", {}))
            self._current = None
        return pieces

    def _next(self, *, ended: bool, pieces: list[Piece]) -> Piece | None:
        """The next delimiter, the text before it added to ``pieces``; None when no more is certain."""
        best: tuple[tuple[int, int, bool, str], _Watched, regex.Match[str]] | None = None
        held = len(self._text)
        for watched in self._watched():
            kind, name, delimiter = watched
            match = delimiter.pattern.search(self._text, self._at, partial=not ended)
            if match is None:
                continue
            start, end = match.span()
            if not ended and (match.partial or (end == len(self._text) and (delimiter.growing or start == end))):
                held = min(held, start)
                continue
            if start == end and self._current is None:
                continue  # without a width it would match here for ever
            key = (start, start - end, kind == "close", name)
            if best is None or key < best[0]:
                best = (key, watched, match)
        if best is None or (best[0][0] >= held and not ended):
            self._pass_on(len(self._text) if ended else held, pieces)
            return None
        _, (kind, name, _), match = best
        self._pass_on(match.start(), pieces)
        self._at = match.end()
        self._current = self._explicit[name] if kind == "open" else None
        captures = {key: value for key, value in match.groupdict().items() if value is not None}
        return Piece(kind, name, match.group(), captures)

    def _watched(self) -> list[_Watched]:
        if self._current is None:
            return self._outside
        closing = self._current.closing
        return [] if closing is None else [_Watched("close", self._current.name, closing)]

    def _pass_on(self, end: int, pieces: list[Piece]) -> None:
        if end > self._at:
            region = self._current or self._implicit
            pieces.append(Piece("text", None if region is None else region.name, self._text[self._at : end], {}))
            self._at = end
