"""Which tokens spell a reply's texts: log probabilities for Deltas."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from llamafast.chat.reply.deltas import ContentDelta, Delta, ReasoningDelta
from llamafast.engine.types import TokenLogprob

_Decoder = getincrementaldecoder("utf-8")


class SpelledTexts:
    """Which tokens of one reply spell which of its texts.

    A parser takes marks and white space away, holds text back and may write arguments anew. So each text is looked for
    in what the tokens spell, behind the one before it; a text that is not there as it stands has no tokens.
    """

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        """``piece`` gives the bytes that a token stands for."""
        self._piece = piece
        self._decoder = _Decoder("replace")
        self._text = ""  # what the tokens that are kept spell
        self._kept: deque[tuple[int, int, TokenLogprob]] = deque()  # with where each begins and ends
        self._begin = self._end = self._read = 0  # of that text, and how far Deltas have read it

    @property
    def n_kept(self) -> int:
        """The tokens that wait for their text."""
        return len(self._kept)

    def of(self, deltas: Iterable[Delta], tokens: Sequence[TokenLogprob]) -> list[list[TokenLogprob]]:
        """What the text of each Delta consists of, after more ``tokens``; empty for all but content.

        Bytes that begin a character belong to the token that completes it, and go with it.
        """
        before = self._end
        for token in tokens:
            text = self._decoder.decode(self._piece(token.token))
            self._kept.append((self._end, self._end + len(text), token))
            self._text += text
            self._end += len(text)
        return [self._spelled(delta, before) for delta in deltas]

    def _spelled(self, delta: Delta, before: int) -> list[TokenLogprob]:
        if not isinstance(delta, ContentDelta | ReasoningDelta):
            self._drop(max(before, self._read))  # a call is told when its text has been read
            return []
        at = self._text.find(delta.text, self._read - self._begin)
        if at < 0:
            return []
        at += self._begin
        self._drop(at)
        spelled: list[TokenLogprob] = []
        while self._kept and self._kept[0][0] < at + len(delta.text):
            spelled.append(self._kept.popleft()[2])
        self._drop(at + len(delta.text))
        return spelled if isinstance(delta, ContentDelta) else []

    def _drop(self, end: int) -> None:
        """Forget all that is complete before ``end``."""
        while self._kept and self._kept[0][0] < end and self._kept[0][1] <= end:
            self._kept.popleft()
        self._read = end
        begin = min(end, self._kept[0][0]) if self._kept else end
        self._text = self._text[begin - self._begin :]
        self._begin = begin
