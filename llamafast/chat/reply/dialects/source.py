"""Text that arrives in pieces, and the steps by which a parser reads it.

A parser is a generator: it yields when it needs more text than there is. So it is written like one that has all of
the text, and its result cannot depend on how the text is cut. Every step decides by the text alone; each character
is looked at a bounded number of times.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

Step = Generator[None, None, T]
Sink = Callable[[str], object]

BLANK = re.compile(r"\s*")


class Marks:
    """A set of texts to look for. None may be the beginning of another: the first to be complete wins."""

    def __init__(self, texts: Iterable[str]) -> None:
        unique = list(dict.fromkeys(texts))
        whole = "|".join(map(re.escape, unique))
        begun = "|".join(map(_beginnings, unique))
        # with nothing to look for, a pattern that matches nowhere
        self._pattern = re.compile(rf"({whole})|(?:{begun})\Z" if unique else r"(?!)()")

    def search(self, text: str, at: int) -> re.Match[str] | None:
        """The leftmost place from ``at`` where one of the texts is (group 1) or, at the end, may be beginning."""
        return self._pattern.search(text, at)


def _beginnings(text: str) -> str:
    """A pattern for every proper beginning of ``text``."""
    pattern = ""
    for char in reversed(text[1:-1]):
        pattern = f"(?:{re.escape(char)}{pattern})?"
    return re.escape(text[0]) + pattern if len(text) > 1 else r"(?!)"


class Source:
    """The text between what has been read and what has arrived. ``ended``: nothing more will come."""

    __slots__ = ("_kept", "_kept_from", "at", "ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._kept: list[str] | None = None
        self._kept_from = 0

    def add(self, text: str) -> None:
        if self._kept is not None:
            self._kept.append(self.text[self._kept_from : self.at])
            self._kept_from = 0
        self.text = self.text[self.at :] + text
        self.at = 0

    def keep(self) -> None:
        """Remember all that is read from here on, until ``kept`` or ``forget``."""
        self._kept = []
        self._kept_from = self.at

    def kept(self) -> str:
        """What was read since ``keep``; forgets it."""
        text = "".join(self._kept or ()) + self.text[self._kept_from : self.at]
        self._kept = None
        return text

    def forget(self) -> None:
        self._kept = None

    def peek(self) -> Step[str]:
        """The next character; empty at the end."""
        while self.at == len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def literal(self, text: str) -> Step[bool]:
        """Read ``text`` if it comes next."""
        while True:
            rest = self.text[self.at : self.at + len(text)]
            if rest == text:
                self.at += len(text)
                return True
            if self.ended or not text.startswith(rest):
                return False
            yield

    def run(self, pattern: re.Pattern[str]) -> Step[str]:
        """Read all characters of a class, none or more; ``pattern`` is ``[class]*``."""
        pieces = []
        while True:
            match = pattern.match(self.text, self.at)
            assert match is not None
            pieces.append(match[0])
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return "".join(pieces)
            yield

    def until(self, marks: Marks, sink: Sink) -> Step[str]:
        """Hand the text before the next mark to ``sink`` as it comes, read the mark and return it.

        At the end without a mark: the empty string.
        """
        while True:
            match = marks.search(self.text, self.at)
            whole = match is not None and match.start(1) >= 0
            stop = len(self.text) if match is None or (self.ended and not whole) else match.start()
            if stop > self.at:
                sink(self.text[self.at : stop])
                self.at = stop
            if match is not None and whole:
                self.at = match.end()
                return match[1]
            if self.ended:
                return ""
            yield

    def expect(self, marks: Iterable[str]) -> Step[bool]:
        """Read ``marks`` in turn, whatever white space is before each; False at the first that is missing."""
        for mark in marks:
            yield from self.run(BLANK)
            if not (yield from self.literal(mark)):
                return False
        return True

    def skip(self, marks: Iterable[str]) -> Step[None]:
        """Read those of ``marks`` that come, in their order, and the white space before them."""
        for mark in marks:
            yield from self.run(BLANK)
            yield from self.literal(mark)


@lru_cache(256)
def marks_of(texts: tuple[str, ...]) -> Marks:
    """The compiled ``Marks`` of ``texts``; the tables make a few dozen different ones."""
    return Marks(texts)
