"""Texts that are filled in, as tokens."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.fake_engine import BOS, INFO, ByteTokenizer

from llamafast.chat.infill import Chunk, InfillTask, infill_tokens
from llamafast.chat.plan import plan_infill
from llamafast.engine.model_facts import FimTokens
from llamafast.errors import InvalidRequest

# bytes that no text here has
PRE, SUF, MID, PAD, REP, SEP = 1, 2, 3, 4, 5, 6
FIM = FimTokens(PRE, SUF, MID, PAD, REP, SEP)
NAMES = {BOS: "^", PRE: "<PRE>", SUF: "<SUF>", MID: "<MID>", REP: "<REP>", SEP: "<SEP>"}


def filled(fim: FimTokens = FIM, max_seq_len: int = 512, **fields: Any) -> str:
    """The prompt, its control tokens by name."""
    task = InfillTask(**{"prefix": "def f(", "suffix": "\n", "max_tokens": 8} | fields)
    tokens = infill_tokens(task, ByteTokenizer(), replace(INFO, fim=fim, max_seq_len=max_seq_len))
    assert len(tokens) + (task.max_tokens or 0) <= max_seq_len or task.max_tokens is None
    return "".join(NAMES.get(token) or chr(token) for token in tokens)


def test_what_stands_around_the_gap() -> None:
    assert filled(FimTokens(PRE, SUF, MID)) == "^<PRE>def f(<SUF>\n<MID>"
    assert filled() == "^<REP>myproject\n<SEP>filename\n<PRE>def f(<SUF>\n<MID>"


def test_other_files_come_first_each_behind_its_name() -> None:
    chunks = [Chunk("old", "a.py"), Chunk("new")]
    assert filled(chunks=chunks) == (
        "^<REP>myproject\n<SEP>a.py\nold<SEP>tmp\nnew<SEP>filename\n<PRE>def f(<SUF>\n<MID>"
    )
    assert filled(FimTokens(PRE, SUF, MID), chunks=chunks) == (
        "^\n\n--- snippet ---\n\nold\n\n--- snippet ---\n\nnew<PRE>def f(<SUF>\n<MID>"
    )


def test_some_models_read_what_is_behind_the_gap_first() -> None:
    assert filled(FimTokens(PRE, SUF, MID, suffix_first=True)) == "^<SUF>\n<PRE>def f(<MID>"
    # some of them have no mark of the gap: it is where the text ends
    assert filled(FimTokens(PRE, SUF, suffix_first=True)) == "^<SUF>\n<PRE>def f("
    with pytest.raises(InvalidRequest, match="no tokens by which"):
        filled(FimTokens(PRE, SUF))


def test_control_tokens_that_a_client_writes_are_text() -> None:
    assert filled(FimTokens(PRE, SUF, MID), prefix="</s>", suffix="<s>") == "^<PRE></s><SUF><s><MID>"


def test_what_does_not_fit_is_left_out_where_it_is_farthest() -> None:
    text = filled(FimTokens(PRE, SUF, MID), 64, prefix="a" * 50 + "b" * 50, suffix="c" * 50 + "d" * 50)
    before, behind = text.removeprefix("^<PRE>").removesuffix("<MID>").split("<SUF>")
    assert (set(before), set(behind)) == ({"b"}, {"c"})
    assert 2 * len(behind) < len(before) <= 3 * len(behind)
    # of the chunks the newest stay
    text = filled(FimTokens(PRE, SUF, MID, file=SEP), 64, chunks=[Chunk("x" * 40, "old"), Chunk("y" * 20, "new")])
    assert "<SEP>new\n" + "y" * 20 in text
    assert text.index("new") > text.find("old")


@pytest.mark.parametrize(
    ("n_before", "chunks"),
    [
        (10, []),
        (10, [Chunk("x" * 900, "old"), Chunk("y" * 90, "new")]),
        (450, [Chunk("x" * 900)]),
        (2_000, [Chunk("x" * 900)]),
        (2 * 512 * INFO.longest_piece, [Chunk("x" * 900)]),
    ],
)
def test_a_keystroke_computes_what_is_new(n_before: int, chunks: list[Chunk]) -> None:
    n_typed = 320
    letters = random.Random(1).choices("abcdefgh\n", k=n_before + n_typed)
    prompts = [
        filled(prefix="".join(letters[: n_before + i]), suffix="z" * 20, chunks=chunks).removesuffix("<MID>")
        for i in range(n_typed)
    ]
    n_new = [_n_new(last, now) for last, now in pairwise(prompts)]
    again = sum(n > 20 + len("<SUF>") + 1 for n in n_new)
    assert again <= n_typed // (512 // 16) + 1, n_new


def _n_new(last: str, now: str) -> int:
    """How much of ``now`` stands behind what both begin with."""
    return len(now) - next((i for i, (a, b) in enumerate(zip(last, now, strict=False)) if a != b), len(last))


@given(
    st.text("ab\n", max_size=200), st.text("cd\n", max_size=200), st.integers(16, 200), st.integers(0, 400),
    st.lists(st.builds(Chunk, st.text("xy", max_size=80), st.sampled_from(["", "f"])), max_size=4),
    st.sampled_from([FIM, FimTokens(PRE, SUF, MID), FimTokens(PRE, SUF, MID, file=SEP)]),
)  # fmt: skip
def test_it_always_fits(
    prefix: str, suffix: str, room: int, max_tokens: int, chunks: list[Chunk], fim: FimTokens
) -> None:
    info = replace(INFO, fim=fim, max_seq_len=room)
    task = InfillTask(prefix=prefix, suffix=suffix, chunks=chunks, max_tokens=max_tokens)
    tokens = infill_tokens(task, ByteTokenizer(), info).tolist()
    assert len(tokens) + min(max_tokens, room // 2) <= room
    at = [tokens.index(mark) for mark in (PRE, SUF, MID)]
    assert at == sorted(at)
    assert at[-1] == len(tokens) - 1
    assert prefix.encode().endswith(bytes(tokens[at[0] + 1 : at[1]]))
    assert suffix.encode().startswith(bytes(tokens[at[1] + 1 : at[2]]))


def test_a_plan_ends_at_the_marks_of_files() -> None:
    task = InfillTask(prefix="a", suffix="b", max_tokens=4, stop_token_ids=[9])
    plan, ask = plan_infill(task, ByteTokenizer(), replace(INFO, fim=FIM))
    assert (plan.stop_token_ids, ask, plan.max_tokens) == ((9, PAD, REP, SEP), None, 4)


def test_a_model_that_fills_nothing_in() -> None:
    with pytest.raises(InvalidRequest, match="no tokens by which") as caught:
        plan_infill(InfillTask(prefix="a", suffix="b", names={"suffix": "input_suffix"}), ByteTokenizer(), INFO)
    assert caught.value.param == "input_suffix"
