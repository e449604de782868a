"""Drafts under grammars behind the engine's door: choices, thoughts of a bounded length, tools, little memory."""

from __future__ import annotations

import asyncio
from array import array

import pytest
from core.inside import draft_by, drafter_of, set_times
from support.engines import settled

from engine.test_memory_kinds import TEXTS, start
from llamafast.chat.grammar.calls import CallGrammar
from llamafast.chat.grammar.compiler import compiled, grammar_text, grammar_tokenizer
from llamafast.chat.grammar.requested import json_schema_grammar, text_grammar
from llamafast.chat.reply.dialects.forms import Dialect
from llamafast.chat.reply.dialects.tables import GENERIC
from llamafast.chat.reply.thoughts import Thoughts
from llamafast.chat.tools import Tool
from llamafast.engine.types import Plan, SamplingParams

LOOKUP = {"draft_model": "prompt-lookup-decoding"}
PEOPLE = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"name": {"enum": ["anna", "annabel", "bert"]}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "minItems": 4,
}
THINKER = Dialect(name="thinker", forms=GENERIC.forms[:1], reasoning=(("<think>", "</think>"),))
TOOL = Tool("weigh", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}, True, {})


def grammars():
    """By name: as chat.grammar writes them."""
    calls = CallGrammar(THINKER, lambda text: None, ())
    how = {"forced": False, "parallel": True, "begun": "<think>"}
    return {
        "json": [json_schema_grammar(PEOPLE, "x")],
        # any text, and a form from where a call begins
        "tools": calls.reply((TOOL,), None, **how),
        "thoughts": calls.reply((), json_schema_grammar(PEOPLE, "x"), **how),
        "words": [text_grammar("regex", "(yes|yesterday|no){8,20}", "x")],
    }


class Known:
    """Drafts what came before behind the same tokens, every third time something else."""

    def __init__(self):
        self.answers, self.n = [], 0

    def __call__(self, tag, tokens, most):
        self.n += 1
        for answer in self.answers:
            if answer[: len(tokens)] == tokens:
                draft = answer[len(tokens) : len(tokens) + most]
                return draft if self.n % 3 else [*draft[:2], 97, *draft[3:]]
        return []


async def said(engine, prompt, grammar, **options):
    """What is told of each choice, its tokens, and how many of those were drafted and came."""
    matcher = compiled(grammar_tokenizer(engine.tokenizer), grammar_text(grammars()[grammar]))
    options = {"sampling": SamplingParams(temperature=1.0, seed=7), "max_tokens": 60, "top_logprobs": 1} | options
    generation = engine.submit(Plan(prompts=(array("i", prompt),), matcher=matcher, **options))
    told = {}
    async for batch in generation:
        for event in batch:
            text, tokens, _ = told.get(event.index, ("", [], None))
            tokens = [*tokens, *(one.token for one in event.logprobs or ())]
            told[event.index] = (text + event.text, tokens, event.finish_reason)
    return told, generation.completion_tokens, [list(one.tokens()) for one in generation.sequences]


@pytest.mark.parametrize("kind", ["unified", "hybrid"])
async def test_every_choice_says_what_it_says_without_drafts(tiny_model, kind):
    drafts, plain = start(tiny_model, kind, 0, **LOOKUP), start(tiny_model, kind, 0, draft_model="none")
    known = Known()
    draft_by(drafter_of(drafts._worker.runner), known)
    bound = Thoughts(THINKER, plain.tokenizer).budget(12, "<think>")
    for name, options in (
        ("json", {"n": 3}),
        ("words", {"n": 3, "stop": ("noyes",)}),
        ("tools", {}),
        ("thoughts", {"n": 2, "budget": bound}),
        ("thoughts", {"budget": bound, "sampling": SamplingParams(temperature=0)}),
    ):
        expected = await said(plain, TEXTS[0][:40], name, **options)
        known.answers = expected[2]
        before = drafts.counters()["draft_tokens_accepted"]
        assert await said(drafts, TEXTS[0][:40], name, **options) == expected
        await settled(drafts)
        assert drafts.counters()["draft_tokens_accepted"] > before
    for engine in (drafts, plain):
        await engine.close()


async def test_answers_of_a_form_are_drafted_where_memory_is_too_small_for_all(tiny_model):
    """What others were answered, and those who give way, come back and leave."""
    plain = start(tiny_model, "unified", 0, draft_model="none")
    drafts = start(tiny_model, "unified", 200_000, n_ctx=640, n_seq_max=4, **LOOKUP)
    set_times(drafter_of(drafts._worker.runner), [1.0] * 64)
    works = [
        ([*TEXTS[k % 3][: 100 + 10 * k], 33], name) for k, name in enumerate(["json", "words", "json", "thoughts"])
    ]
    expected = [await said(plain, prompt, name) for prompt, name in works]
    for _ in range(2):
        heard = [asyncio.ensure_future(said(drafts, prompt, name)) for prompt, name in works]
        matcher = compiled(grammar_tokenizer(drafts.tokenizer), grammar_text(grammars()["json"]))
        left = drafts.submit(Plan(prompts=(array("i", TEXTS[1][:90]),), matcher=matcher, max_tokens=200))
        asyncio.get_running_loop().call_later(0.02, left.cancel)
        assert [one[:2] for one in await asyncio.gather(*heard)] == [one[:2] for one in expected]
        await settled(drafts)
    counters = drafts.counters()
    assert counters["draft_tokens_accepted"] > 20
    assert counters["used_cells"] == 0
    for engine in (drafts, plain):
        await engine.close()
