"""What can be seen of an engine at work, against what it counts."""

from __future__ import annotations

import asyncio
import time
from array import array

from support.engines import GREEDY, collect, config, plan, settled, standing

from llamafast._core.glance import PART_DECODE, PART_MEDIA, PART_PROMPT
from llamafast._core.runner import Runner
from llamafast.engine import seen
from llamafast.engine.activity import DECODE, MEDIA, PROMPT, SeenSequence
from llamafast.engine.load import load_engine
from llamafast.engine.types import Plan


def rows(activity, kind):
    return sum(part.n_rows for step in activity.steps for part in step.parts if part.kind == kind)


def decoding(engine):
    return [one for one in engine.activity().running if one.phase == "decoding"]


async def test_the_parts_of_all_steps_are_what_is_counted(engine):
    asked = [engine.submit(plan(40, 41, *range(50, 50 + n), max_tokens=n, ignore_eos=True)) for n in (5, 9, 12)]
    await asyncio.gather(*map(collect, asked))
    await settled(engine)
    activity, counters = engine.activity(), engine.counters()
    assert activity.n_steps == len(activity.steps) == counters["steps"]
    assert rows(activity, PROMPT) == counters["prompt_tokens"]
    assert rows(activity, PROMPT) + rows(activity, DECODE) == counters["rows"]
    # who continues several at once is in the same steps
    assert max(len(step.parts) for step in activity.steps) == 3
    assert all(step.seconds > 0 for step in activity.steps)
    assert len({part.id for step in activity.steps for part in step.parts}) == 3


async def test_who_runs_is_told_with_what_it_was_lent_and_by_whom(engine):
    prefix = array("i", range(40, 104))
    first = engine.submit(Plan(prompts=(prefix,), sampling=GREEDY, max_tokens=100, ignore_eos=True))
    async with standing(engine, lambda: decoding(engine)):
        (one,) = decoding(engine)
        prompt = prefix + array("i", [7])
        second = engine.submit(Plan(prompts=(prompt,), sampling=GREEDY, max_tokens=100, ignore_eos=True))
    async with standing(engine, lambda: len(decoding(engine)) == 2):
        (other,) = (told for told in decoding(engine) if told.id != one.id)
        assert isinstance(other, SeenSequence)
        assert (other.n_prompt, other.n_lent, other.lender, other.n_restored) == (65, 64, one.id, 0)
        assert other.n_past >= 65
        assert other.n_max == 165
        assert other.slot != one.slot
        assert 0 < other.age < 60
    first.cancel()
    second.cancel()
    await settled(engine)
    assert engine.activity().running == []


async def test_those_who_wait_are_told_by_rank_as_far_as_there_is_room(tiny_model, monkeypatch):
    monkeypatch.setattr(seen, "MOST_WAITING", 2)
    engine = load_engine(config(tiny_model("tiny-llama"), n_seq_max=1), tiny_model("tiny-llama"))
    engine.start()
    asked = [engine.submit(plan(40, n, max_tokens=300, ignore_eos=True)) for n in range(50, 54)]
    async with standing(engine, lambda: len(engine.activity().waiting) == 2):
        activity = engine.activity()
    assert [s.phase for s in activity.waiting] == ["waiting"] * 2
    assert activity.waiting[0].id < activity.waiting[1].id
    assert (activity.waiting[0].n_prompt, activity.waiting[0].slot) == (2, -1)
    for generation in asked:
        generation.cancel()
    await engine.close()


async def test_only_the_last_steps_are_kept_and_no_more_parts_than_are_asked_for(engine):
    asked = [engine.submit(plan(40, n, max_tokens=300, ignore_eos=True)) for n in (50, 51, 52)]
    await asyncio.gather(*map(collect, asked))
    await settled(engine)
    runner: Runner = engine._worker.runner
    n_steps, steps = runner.last_steps(1000, 10_000)
    assert n_steps == engine.counters()["steps"] > 128
    assert len(steps) == 128
    assert runner.last_steps(3, 10_000)[1] == steps[-3:]
    few = runner.last_steps(1000, 7)[1]
    assert few == steps[-len(few) :]
    assert sum(len(parts) for _, parts in few) <= 7
    assert runner.last_steps(0, 10) == (n_steps, [])


async def test_looking_on_takes_little_of_the_event_loop(engine):
    asked = [engine.submit(plan(40, n, max_tokens=100, ignore_eos=True)) for n in (50, 51, 52, 53)]
    taken = []
    async with standing(engine, lambda: len(engine.activity().running) == 4):
        for _ in range(20):
            began = time.thread_time()
            engine.activity()
            taken.append(time.thread_time() - began)
            await asyncio.sleep(0)
    for generation in asked:
        generation.cancel()
    await settled(engine)
    assert sorted(taken)[10] < 0.001


def test_kinds_are_called_as_in_the_core():
    assert (DECODE, PROMPT, MEDIA) == (PART_DECODE, PART_PROMPT, PART_MEDIA)
