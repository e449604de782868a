"""What ends a model's thoughts from outside: the marks of its dialect, spelled by its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from llamafast.chat.reply.dialects.forms import Dialect
from llamafast.engine.reasoning import ReasoningBudget, ThoughtMarks
from llamafast.engine.types import Tokenizer
from llamafast.errors import Untokenizable

# Of Harmony's messages those are thoughts that are in this channel.
_CHANNEL = ("<|channel|>analysis<|message|>", "<|end|>")
_MESSAGE = "<|message|>"
_MESSAGE_MARKS = (_MESSAGE, "<|start|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>")


class Thoughts:
    """The marks of ``dialect`` around thoughts that this vocabulary can spell, from wherever a model has begun them."""

    def __init__(self, dialect: Dialect, tokenizer: Tokenizer) -> None:
        pairs = (_CHANNEL,) if dialect.channels else dialect.reasoning
        pieces = _pieces_in([end.encode() for _, end in pairs], tokenizer)
        spelled = {begin: _marks(begin, end.encode(), pieces, tokenizer) for begin, end in pairs}
        self._marks = {begin: marks for begin, marks in spelled.items() if marks is not None}
        openers = [opener for form in dialect.forms for opener in form.openers] if dialect.calls_end_reasoning else []
        self._closers = tuple(dict.fromkeys(opener.encode() for opener in openers if opener))

    def budget(self, n_tokens: int, begun: str) -> ReasoningBudget | None:
        """``begun`` is the mark that the prompt ends with, "" where there is none. None for a model that has no marks
        around its thoughts."""
        if not self._marks:
            return None
        index = list(self._marks).index(begun) if begun in self._marks else -1
        return ReasoningBudget(n_tokens, index, tuple(self._marks.values()), self._closers)


def begun_message(prompt: str) -> str:
    """The header of thoughts in Harmony that ``prompt`` ends within, "" for none."""
    begin, _ = _CHANNEL
    last = max(prompt.rfind(mark) for mark in _MESSAGE_MARKS)
    header = prompt[: last + len(_MESSAGE)] if prompt.startswith(_MESSAGE, max(last, 0)) else ""
    return begin if header.endswith(begin) else ""


def _pieces_in(texts: list[bytes], tokenizer: Tokenizer) -> dict[bytes, int]:
    """The tokens that occur in one of ``texts``, by what they stand for."""
    parts = {text[a:b] for text in texts for a in range(len(text)) for b in range(a + 1, len(text) + 1)}
    found: dict[bytes, int] = {}
    for token in range(tokenizer.n_tokens if parts else 0):
        if (piece := tokenizer.piece(token)) in parts:
            found.setdefault(piece, token)
    return found


def _marks(begin: str, end: bytes, pieces: Mapping[bytes, int], tokenizer: Tokenizer) -> ThoughtMarks | None:
    """None where the vocabulary cannot spell the end from each of its bytes."""
    forced: dict[int, int] = {}
    for at in range(len(end)):
        longest = next((end[at:to] for to in range(len(end), at, -1) if end[at:to] in pieces), None)
        if longest is None:
            return None
        forced[at] = pieces[longest]
    # from the beginning as the tokeniser spells it, which is how the model has read it
    at = 0
    for token in _tokens(end.decode(), tokenizer):
        piece = tokenizer.piece(token)
        if not piece or not end.startswith(piece, at):
            break
        forced[at] = token
        at += len(piece)
    return ThoughtMarks(begin.encode(), end, tuple(forced[at] for at in range(len(end))))


def _tokens(text: str, tokenizer: Tokenizer) -> list[int]:
    try:
        return tokenizer.tokenize(text, add_special=False, parse_special=True).tolist()
    except Untokenizable:
        return []
