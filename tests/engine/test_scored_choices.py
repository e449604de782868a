"""A prompt whose log probabilities are told is scored once, however many choices it has; all of them are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.engines import collect, config, plan, settled

from engine.test_memory_kinds import KINDS
from llamafast.engine.generation import Generation
from llamafast.engine.load import load_engine
from llamafast.engine.types import Event, TokenLogprob

PROMPT = [33 + 7 * k % 300 for k in range(150)]
SCORED: dict[str, Any] = {"top_logprobs": 2, "prompt_logprobs": True, "max_tokens": 4, "ignore_eos": True}


async def told(generation: Generation) -> list[list[Event]]:
    """The events of each choice."""
    events: dict[int, list[Event]] = {}
    async for batch in generation:
        for event in batch:
            events.setdefault(event.index, []).append(event)
    return [events[index] for index in sorted(events)]


def scores(events: list[Event]) -> list[tuple[int, float, int]]:
    tokens: list[TokenLogprob] = [token for event in events for token in event.prompt_logprobs or ()]
    return [(token.token, round(token.logprob, 3), token.rank) for token in tokens]


def starts(tiny_model, kind: str, **options: Any):
    name, settings = KINDS[kind]
    return load_engine(config(tiny_model(name), **{"n_ctx": 2048, **settings, **options}), tiny_model(name))


@pytest.mark.parametrize("kind", KINDS)
async def test_choices_of_a_scored_prompt(tiny_model, kind: str) -> None:
    engine = starts(tiny_model, kind)
    engine.start()
    (alone,) = await told(engine.submit(plan(*PROMPT, **SCORED)))
    plain = await collect(engine.submit(plan(*PROMPT, n=3, max_tokens=4, ignore_eos=True)))
    before = engine.counters()["prompt_tokens"]
    generation = engine.submit(plan(*PROMPT, n=3, **SCORED))
    choices = await told(generation)
    await settled(engine)
    n_computed = engine.counters()["prompt_tokens"] - before
    assert len(choices) == 3
    assert generation.cached_tokens == 0
    assert generation.completion_tokens == 12
    assert len(scores(alone)) == len(PROMPT) - 1
    for choice, (text, reason) in zip(choices, plain, strict=True):
        assert [token for token, *_ in scores(choice)] == PROMPT[1:]
        assert scores(choice) == scores(choices[0])
        assert ("".join(event.text for event in choice), choice[-1].finish_reason) == (text, reason)
        assert sum(event.n_tokens for event in choice) == 4
        # what is told of the prompt comes first
        first = next(at for at, event in enumerate(choice) if event.n_tokens)
        assert not [event for event in choice[first + 1 :] if event.prompt_logprobs]
    for (_, one, _), (_, other, _) in zip(scores(alone), scores(choices[0]), strict=True):
        assert one == pytest.approx(other, abs=2e-3)
    if kind == "unified":
        assert n_computed <= len(PROMPT) + 2 * 16
    await engine.close()


async def test_without_an_answer_and_with_several_prompts(engine) -> None:
    many = plan(*PROMPT, n=2, **SCORED | {"max_tokens": 0})
    choices = await told(engine.submit(many))
    assert [scores(choice) for choice in choices] == [scores(choices[0])] * 2
    assert len(scores(choices[0])) == len(PROMPT) - 1
    assert [choice[-1].finish_reason for choice in choices] == ["length", "length"]
    two = plan(*PROMPT, n=2, **SCORED)
    two = type(two)(**{name: getattr(two, name) for name in two.__struct_fields__} | {
        "prompts": (two.prompts[0], two.prompts[0][:40])
    })  # fmt: skip
    choices = await told(engine.submit(two))
    assert [len(scores(choice)) for choice in choices] == [149, 149, 39, 39]
    # as much as fits is nothing
    full = [33] * 512
    choices = await told(engine.submit(plan(*full, n=3, **SCORED | {"max_tokens": None})))
    assert [len(scores(choice)) for choice in choices] == [511] * 3
    assert [choice[-1].finish_reason for choice in choices] == ["length"] * 3


async def test_those_that_give_way_are_scored_all_the_same(tiny_model) -> None:
    """Where memory is short whoever scores comes back to its own rows, whatever others have of its prompt."""
    engine = starts(tiny_model, "unified", n_ctx=512, n_seq_max=6)
    engine._worker.scheduler.LOOKAHEAD = 16
    engine.start()
    plans = [
        plan(*PROMPT[: 60 + 20 * k], n=2, **SCORED | {"max_tokens": 60}) for k in range(4)
    ]  # fmt: skip
    alone = [[scores(choice) for choice in await told(engine.submit(one))] for one in plans]
    together = await asyncio.gather(*(told(engine.submit(one)) for one in plans))
    for one, truth in zip(together, alone, strict=True):
        for choice, of_choice in zip(one, truth, strict=True):
            assert [token for token, *_ in scores(choice)] == [token for token, *_ in of_choice]
            for (_, got, _), (_, right, _) in zip(scores(choice), of_choice, strict=True):
                assert got == pytest.approx(right, abs=2e-3)
    assert engine.counters()["preempted"] > 0
    await engine.close()
