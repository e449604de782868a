"""The marks that end thoughts, as a vocabulary spells them."""

from __future__ import annotations

from array import array

import pytest
from support.fake_engine import ByteTokenizer

from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC, dialect_named
from llamafast.chat.reply.thoughts import Thoughts, begun_message


class Pieces(ByteTokenizer):
    """Bytes, and these pieces behind them; what it tokenises is spelled by the longest of them."""

    def __init__(self, *pieces: str) -> None:
        self._pieces = [*(bytes([i]) for i in range(256)), *(piece.encode() for piece in pieces)]
        self.n_tokens = len(self._pieces)

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> array[int]:
        raw, tokens = text.encode(), array("i")
        while raw:
            piece = max((piece for piece in self._pieces if raw.startswith(piece)), key=len)
            tokens.append(self._pieces.index(piece))
            raw = raw[len(piece) :]
        return tokens


def spelled(tokenizer: Pieces, end: bytes, forced: tuple[int, ...], at: int) -> list[bytes]:
    """What is written from byte ``at`` of an end on."""
    written = []
    while at < len(end):
        written.append(tokenizer.piece(forced[at]))
        at += len(written[-1])
    return written


def test_an_end_is_completed_from_wherever_it_was_begun() -> None:
    tokenizer = Pieces("</think>", "ink>", "think")
    budget = Thoughts(GENERIC, tokenizer).budget(5, "<think>")
    assert budget is not None
    assert (budget.n_tokens, budget.begun) == (5, 0)
    (marks,) = budget.marks
    assert (marks.begin, marks.end) == (b"<think>", b"</think>")
    assert spelled(tokenizer, marks.end, marks.forced, 0) == [b"</think>"]
    for at in range(len(marks.end)):
        assert b"".join(spelled(tokenizer, marks.end, marks.forced, at)) == marks.end[at:]
    assert spelled(tokenizer, marks.end, marks.forced, 2) == [b"think", b">"]
    assert spelled(tokenizer, marks.end, marks.forced, 4) == [b"ink>"]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_dialect_that_reasons_has_marks(dialect) -> None:  # type: ignore[no-untyped-def]
    budget = Thoughts(dialect, Pieces()).budget(0, "")
    assert (budget is not None) == dialect.reasons
    if budget is not None:
        assert budget.begun == -1
        assert len(budget.marks) == (1 if dialect.channels else len(dialect.reasoning))


def test_calls_end_thoughts_where_models_forget_to() -> None:
    forgetful = next(dialect for dialect in DIALECTS if dialect.calls_end_reasoning)
    budget = Thoughts(forgetful, Pieces()).budget(3, "")
    assert budget is not None
    assert forgetful.forms[0].openers[0].encode() in budget.closers
    hermes = Thoughts(dialect_named("hermes"), Pieces()).budget(3, "")
    assert hermes is not None
    assert (hermes.closers != ()) == dialect_named("hermes").calls_end_reasoning


def test_a_vocabulary_that_cannot_spell_an_end_has_no_budget() -> None:
    class Blind(Pieces):
        def piece(self, token: int) -> bytes:
            return b"x"

    assert Thoughts(GENERIC, Blind()).budget(3, "") is None


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        ("<|start|>user<|message|>hi<|end|><|start|>assistant<|channel|>analysis<|message|>Let me", True),
        ("<|start|>assistant<|channel|>analysis<|message|>", True),
        ("<|start|>assistant<|channel|>final<|message|>The", False),
        ("<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant", False),
        (
            "<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>",
            False,
        ),
        ("<|start|>assistant<|channel|>analysis", False),
        ("<|start|>assistant", False),
        ("", False),
    ],
)
def test_thoughts_that_a_prompt_in_harmony_leaves_open(prompt: str, begun: bool) -> None:
    assert begun_message(prompt) == ("<|channel|>analysis<|message|>" if begun else "")
    harmony = Thoughts(dialect_named("harmony"), Pieces()).budget(5, begun_message(prompt))
    assert harmony is not None
    assert harmony.begun == (0 if begun else -1)
