"""Control tokens that a client wrote are text: only the template's own end a turn or begin another.

Before rendering, every control token's text inside the client's strings is put between two noncharacters (code points
that Unicode keeps out of interchange). After it, the runs of text that hold marks are tokenised without control tokens.
Such a run reaches from one of the template's control tokens to the next. llama.cpp tokenises exactly these runs on
their own, so cutting there changes nothing, and a prompt without marks is tokenised as it stands.

What this server itself writes into messages (calls of the history, where the template does not print them) has control
tokens of its own. They go through the template as words that no client can know, as do media.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from secrets import token_hex
from typing import Any

from llamafast.engine.types import Tokenizer
from llamafast.errors import InvalidRequest

_OPEN, _CLOSE = MARKS = "\ufdd0\ufdd1"
# Longer texts are read in pieces of some milliseconds, between which another thread may run.
_PIECE = 1 << 16
_MEDIA_MARKER = "<__media__>"


class ControlTokens:
    """The texts of a vocabulary's control tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        texts = [text for text in texts if text]
        self._longest = max(map(len, texts), default=0)
        # a longer one wins over one that it contains, as in llama.cpp
        found = _longest_of(texts) or "(?!)"
        self._token = re.compile(found)
        self._secret = token_hex(8)
        self._own: list[str] = []
        self._marked_or_own = re.compile(f"{_OPEN}(?:{found}){_CLOSE}|(?P<mark>[{MARKS}])|(?P<own>{found})")

    def mark(self, value: Any) -> Any:
        """A copy of a JSON value with the control tokens in its strings and keys marked.

        Raises InvalidRequest when it is nested too deeply.
        """
        try:
            return self._mark(value)
        except RecursionError as error:
            raise InvalidRequest("the messages are nested too deeply", param="messages") from error

    def _mark(self, value: Any) -> Any:
        if isinstance(value, str):
            if len(value) <= _PIECE:
                return self._token.sub(_put_between_marks, value)
            return "".join(self._token.sub(_put_between_marks, piece) for piece in self._pieces(value))
        if isinstance(value, dict):
            return {self._mark(key): self._mark(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(item) for item in value]
        return value

    def _pieces(self, text: str) -> Iterator[str]:
        """``text`` cut where no control token is cut."""
        start = 0
        while len(text) - start > _PIECE:
            near = range(start + _PIECE, start + _PIECE // 2, -1)
            end = next((end for end in near if not self._spans(text, end)), len(text))
            yield text[start:end]
            start = end
        yield text[start:]

    def _spans(self, text: str, place: int) -> bool:
        """Whether a control token begins before ``place`` and ends behind it."""
        begins = range(max(0, place - self._longest + 1), place)
        return any((found := self._token.match(text, at)) is not None and found.end() > place for at in begins)

    def disguise(self, text: str) -> str:
        """``text`` of our own, to be put into what is marked; ``reveal`` gives its control tokens back."""
        return self._token.sub(self._disguised, text)

    def reveal(self, text: str) -> str:
        if self._secret not in text:
            return text
        return re.sub(f"<{self._secret}:([0-9]+)>", lambda found: self._own[int(found[1])], text)

    def _disguised(self, token: re.Match[str]) -> str:
        if token[0] not in self._own:
            self._own.append(token[0])
        return f"<{self._secret}:{self._own.index(token[0])}>"

    def media_word(self, i: int) -> str:
        """What stands for medium ``i`` of a request in its texts."""
        return f"<{self._secret}#{i}>"

    def cut_at_media(self, text: str) -> tuple[list[str], list[int]]:
        """Rendered text cut at the words for media, which leave it, and which media these stand for."""
        if self._secret not in text:
            return [text], []
        parts = re.split(f"<{self._secret}#([0-9]+)>", text)
        return parts[::2], [int(i) for i in parts[1::2]]

    def without_words(self, text: str) -> str:
        """``text`` as a client may read it: with llama-server's marker for media."""
        return _MEDIA_MARKER.join(self.cut_at_media(text)[0])

    @staticmethod
    def unmark(text: str) -> str:
        """Rendered text as a reader should see it."""
        if not _has_marks(text):
            return text
        pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
        return "".join(piece.replace(_OPEN, "").replace(_CLOSE, "") for piece in pieces)

    def tokenize(self, text: str, tokenizer: Tokenizer) -> array[int]:
        """The tokens of rendered text: the template's control tokens as such, marked ones as plain text."""
        if not _has_marks(text):
            return tokenizer.tokenize(text, add_special=False, parse_special=True)
        tokens = array("i")
        for run, is_marked in self._runs(text):
            tokens += tokenizer.tokenize(self.unmark(run), add_special=False, parse_special=not is_marked)
        return tokens

    def certain_lengths(self, text: str, ends: Iterable[int], tokens: array[int], tokenizer: Tokenizer) -> list[int]:
        """For each of ``ends``: how many of the ``tokens`` of rendered ``text`` do not depend on what follows there.

        They reach to the template's last control token before it, as text is tokenised from one to the next. 0 where
        there is none.
        """
        borders = [found.end() for found in self._marked_or_own.finditer(text) if found["own"] is not None]
        places = [i for i, token in enumerate(tokens) if tokenizer.is_control(token)]
        if len(borders) != len(places):
            # this tokeniser makes control tokens of other texts
            return [0 for _ in ends]
        return [places[n - 1] + 1 if (n := bisect_right(borders, end)) else 0 for end in ends]

    def _runs(self, text: str) -> Iterator[tuple[str, bool]]:
        """``text`` cut around the runs with marks, which end at the template's control tokens."""
        start, plain_from, is_marked = 0, 0, False
        for found in self._marked_or_own.finditer(text):
            if found["own"] is None:
                if not is_marked:
                    yield text[start:plain_from], False
                start, is_marked = (plain_from if not is_marked else start), True
                continue
            if is_marked:
                yield text[start : found.start()], True
                start, is_marked = found.start(), False
            plain_from = found.end()
        yield text[start:], is_marked


def _has_marks(text: str) -> bool:
    return _OPEN in text or _CLOSE in text


def _longest_of(texts: Iterable[str]) -> str:
    """A pattern of the longest of ``texts`` at a place: a tree, as most begin alike and there may be some hundred."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], []).append(text)
    may_end = groups.pop("", None) is not None
    branches = []
    for group in groups.values():
        first, last = min(group), max(group)
        n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        branches.append(re.escape(first[:n]) + _longest_of(text[n:] for text in group))
    return f"(?:{'|'.join(branches)}){'?' if may_end else ''}" if branches else ""


def _put_between_marks(token: re.Match[str]) -> str:
    return f"{_OPEN}{token[0]}{_CLOSE}"


NO_CONTROL_TOKENS = ControlTokens(())
