"""Thoughts of a bounded length, on a model whose answers are fixed."""

from __future__ import annotations

from array import array

import pytest
from support.engines import config

from llamafast.chat.reply.dialects.tables import GENERIC
from llamafast.chat.reply.thoughts import Thoughts
from llamafast.engine.load import load_engine
from llamafast.engine.reasoning import ReasoningBudget, ThoughtMarks
from llamafast.engine.types import Plan, SamplingParams

PIECES = ["<think>", "\nLet me", " reason", " briefly.\n", "</think>", "\n\nThe", " answer is 4."]
GREEDY = SamplingParams(temperature=0)


@pytest.fixture
async def engine(tiny_model):
    engine = load_engine(config(tiny_model("tiny-scripted"), n_seq_max=8), tiny_model("tiny-scripted"))
    engine.start()
    yield engine
    await engine.close()


def ids(engine, text):
    return engine.tokenizer.tokenize(text, add_special=False, parse_special=True)


async def said(engine, prompt, budget, **options):
    plan = Plan(prompts=(ids(engine, prompt),), **{"sampling": GREEDY, "max_tokens": 40, "budget": budget} | options)
    generation = engine.submit(plan)
    text = "".join([event.text async for batch in generation for event in batch])
    return text, generation.completion_tokens


def budget(engine, n_tokens, begun=""):
    return Thoughts(GENERIC, engine.tokenizer).budget(n_tokens, begun)


@pytest.mark.parametrize("n_tokens", range(6))
async def test_the_end_is_written_behind_so_many_tokens(engine, n_tokens):
    n_thought = min(n_tokens, 3)
    expected = [PIECES[0], *PIECES[1 : 1 + n_thought], *PIECES[4:]]
    assert await said(engine, "<|s_think|>", budget(engine, n_tokens)) == ("".join(expected), len(expected) + 1)


@pytest.mark.parametrize("n_tokens", [0, 1, 2])
async def test_thoughts_that_the_prompt_has_begun(engine, n_tokens):
    expected = "".join([*PIECES[1 : 1 + n_tokens], *PIECES[4:]])
    assert (await said(engine, "<|s_think|><think>", budget(engine, n_tokens, "<think>")))[0] == expected
    # who does not know that they are thoughts takes them for an answer
    whole = "".join(PIECES[1:])
    assert (await said(engine, "<|s_think|><think>", budget(engine, n_tokens)))[0] == whole


async def test_a_reply_without_thoughts_is_left_alone(engine):
    assert await said(engine, "<|s_text|>", budget(engine, 0)) == await said(engine, "<|s_text|>", None)
    answers = [await said(engine, "<|s_all|>", each) for each in (None, budget(engine, 100))]
    assert answers[0] == answers[1]


async def test_a_mark_of_several_tokens_is_completed_where_it_stands(engine):
    """The script of `<|s_all|>` writes its marks in pieces: `<thi`, `nk>…`, `…</`, `think>…`."""
    whole, _ = await said(engine, "<|s_all|>", None)
    thought, _, answer = whole.removeprefix("<think>").partition("</think>")
    for n_tokens in range(5):
        text, _ = await said(engine, "<|s_all|>", budget(engine, n_tokens))
        assert text.startswith("<think>")
        assert text.count("</think>") == 1
        cut = text.removeprefix("<think>").partition("</think>")[0]
        assert thought.startswith(cut)
    assert (await said(engine, "<|s_all|>", budget(engine, 5)))[0] == f"<think>{thought}</think>{answer}"


async def test_what_may_follow_thoughts_ends_them_too(engine):
    marks = budget(engine, 0).marks
    closing = ReasoningBudget(0, 0, marks, (b"never", b" reason"))
    opening = ReasoningBudget(1, 0, marks, (b"\nLet me",))
    # ended by the first token, so nothing is forced
    assert (await said(engine, "<|s_think|><think>", opening))[0] == "".join(PIECES[1:])
    assert (await said(engine, "<|s_think|><think>", closing))[0] == "".join(PIECES[4:])


async def test_many_at_once_each_with_its_own(engine):
    plans = [
        Plan(prompts=(ids(engine, "<|s_think|>"),), sampling=GREEDY, max_tokens=40, budget=budget(engine, n))
        for n in (0, 1, 2, 3, 0, 1, 2, 3)
    ]
    generations = [engine.submit(plan) for plan in plans]
    for n, generation in zip((0, 1, 2, 3) * 2, generations, strict=True):
        text = "".join([event.text async for batch in generation for event in batch])
        assert text == "".join([PIECES[0], *PIECES[1 : 1 + n], *PIECES[4:]])


async def test_drawn_tokens_leave_the_end_to_the_budget(engine):
    """With any sampling the end comes at the same place, when nothing ends thoughts before."""
    bias = tuple((token, -100.0) for token in set(ids(engine, "</think>")))
    wild = SamplingParams(temperature=2.0, top_p=1.0, seed=3, logit_bias=bias)
    for n_tokens in (1, 5, 9):
        limits = ThoughtMarks(b"<think>", b"</think>", budget(engine, 0).marks[0].forced)
        text, n = await said(
            engine, "<|s_text|><think>", ReasoningBudget(n_tokens, 0, (limits,)), sampling=wild, max_tokens=n_tokens + 1
        )
        assert text.endswith("</think>"), text
        assert n == n_tokens + 1


async def test_marks_that_are_none(engine):
    good = budget(engine, 1)
    for bad, told in (
        (good._replace(begun=3), "no mark 3"),
        (good._replace(marks=(ThoughtMarks(b"", b"</think>", (1,) * 8),)), "empty"),
        (good._replace(marks=(ThoughtMarks(b"<think>", b"</think>", (1,)),)), "each byte"),
        (good._replace(marks=(ThoughtMarks(b"<think>", b"</think>", (10**6,) * 8),)), "vocabulary"),
    ):
        with pytest.raises(Exception, match=told):
            engine.submit(Plan(prompts=(array("i", [40]),), budget=bad))
