"""Prompts that take long beside streams: who is held up by them, and what becomes of what they have computed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from support.engines import collect, config, plan, settled, standing

from llamafast.engine.load import load_engine
from llamafast.errors import EngineUnavailable

# prompt tokens of a step that also decodes: a long prompt takes many
CHUNK = 8


def text(n, seed=0):
    return [(7 * k + seed) % 300 for k in range(n)]


@asynccontextmanager
async def busy(tiny_model, max_tokens=6000, **settings):
    """An engine with a stream that goes on and on, and the stream."""
    path = tiny_model("tiny-llama")
    engine = load_engine(config(path, **{"n_ctx": 16384, "n_seq_max": 32, "prefill_chunk": CHUNK} | settings), path)
    engine.start()
    stream = engine.submit(plan(40, max_tokens=max_tokens, ignore_eos=True))
    await anext(stream)
    try:
        yield engine, stream
    finally:
        async with asyncio.timeout(30):
            await engine.close()


async def solo(tiny_model, *plans):
    """What each answers alone, with nothing kept between them."""
    path = tiny_model("tiny-llama")
    engine = load_engine(config(path, n_ctx=16384), path)
    engine.start()
    answers = [await collect(engine.submit(one)) for one in plans]
    await engine.close()
    return answers


def reached(engine, counter, n):
    """Once a counter has, nothing more is computed in the block."""
    return standing(engine, lambda: engine.counters()[counter] >= n)


def answered(engine):
    """As ``reached`` by the first request that ends."""
    return standing(engine, lambda: engine.counters()["finished_length"] + engine.counters()["finished_stop"])


async def test_a_stream_goes_on_beside_a_long_prompt_and_a_cancel_and_a_close_end_it(tiny_model):
    long = plan(*text(3000, 33), max_tokens=4)
    (expected,) = await solo(tiny_model, long)
    async with busy(tiny_model) as (engine, stream):
        before = engine.counters()["generated_tokens"]
        given_up, kept = engine.submit(long), engine.submit(long)
        async with reached(engine, "running", 3):
            given_up.cancel()
        assert await collect(kept) == expected
        # as many steps as the prompt has chunks
        assert engine.counters()["generated_tokens"] - before >= 3000 // CHUNK
        last = engine.submit(plan(*text(3000, 40)))
        async with reached(engine, "running", 2):
            stream.cancel()
    with pytest.raises(EngineUnavailable):
        await collect(last)


@pytest.mark.parametrize("n_common", [0, 24, 200])
async def test_nobody_waits_for_the_end_of_a_strangers_prompt(tiny_model, n_common):
    """The short one is answered while the long one is still being computed, with what both begin with as soon as that
    is there."""
    begin = text(n_common, 33)
    question = plan(*begin, 40, 41, 42)
    (expected,) = await solo(tiny_model, question)
    async with busy(tiny_model) as (engine, _):
        long = engine.submit(plan(*begin, *text(3000, 90), max_tokens=4))
        async with reached(engine, "running", 2):
            short = engine.submit(question)
        async with answered(engine):
            assert await collect(short) == expected
            assert short.cached_tokens == n_common
            assert long.first_token_seconds is None
        assert len(await collect(long)) == 1


async def test_a_prefix_that_somebody_waits_for_comes_before_prompts_that_are_longer(tiny_model):
    """Also before the rest of a prompt that came first: its half of the rows goes on, the others are for the prefix."""
    begin = text(200, 33)
    async with busy(tiny_model) as (engine, _):
        oldest = engine.submit(plan(*text(1000, 5), max_tokens=1))
        long = engine.submit(plan(*begin, *text(3000, 90), max_tokens=1))
        async with reached(engine, "running", 3):
            short = engine.submit(plan(*begin, 40))
        async with answered(engine):
            await collect(short)
            assert short.cached_tokens == 200
            assert (oldest.first_token_seconds, long.first_token_seconds) == (None, None)


@pytest.mark.parametrize(
    ("how", "ram_bytes"),
    [
        ("cancelled", 0),
        ("one token", 10**8),
        pytest.param("cancelled", 10**8, marks=pytest.mark.heavy),
        pytest.param("one token", 0, marks=pytest.mark.heavy),
    ],
)
async def test_who_waited_for_a_prompt_whose_owner_leaves_goes_on(tiny_model, how, ram_bytes):
    """What many followers have in common is computed once, whoever of them it is that goes on with it."""
    max_tokens = 1 if how == "one token" else 4
    begin = text(1000, 33)
    plans = [plan(*begin, 50 + k, max_tokens=max_tokens) for k in range(12)]
    other = plan(*text(999, 90), 40, max_tokens=max_tokens)
    expected, *answers = await solo(tiny_model, other, *plans)
    async with busy(tiny_model, ram_bytes=ram_bytes) as (engine, _):
        before = engine.counters()["prompt_tokens"]
        waiting = [engine.submit(one) for one in plans]
        stranger = engine.submit(other)
        if how == "cancelled":
            async with reached(engine, "running", 14):
                waiting.pop(0).cancel()
            del answers[0]
        assert await collect(stranger) == expected
        assert [await collect(generation) for generation in waiting] == answers
        # the prefix, the stranger's prompt, each one's own token and, counted late, the stream's
        assert engine.counters()["prompt_tokens"] - before <= 1000 + 1000 + 12 + 1
        cached = [generation.cached_tokens for generation in waiting]
        assert sum(n == 1000 for n in cached) == len(waiting) - 1


async def test_what_is_computed_of_a_long_prompt_is_kept_before_its_end(tiny_model):
    long = plan(*text(3000, 33), max_tokens=4)
    (expected,) = await solo(tiny_model, long)
    async with busy(tiny_model, ram_bytes=10**8) as (engine, _):
        given_up = engine.submit(long)
        # parts of 512 tokens
        async with reached(engine, "cache_saves", 2):
            assert given_up.first_token_seconds is None
            given_up.cancel()
        again = engine.submit(long)
        assert await collect(again) == expected
        assert 1024 <= again.cached_tokens < 2999


async def test_a_prompt_that_gives_way_goes_on_where_it_was(tiny_model):
    """Beside the stream there are cells for a part of it: the bet that the stream is soon done is lost."""
    long = plan(*text(800, 33), max_tokens=4)
    (expected,) = await solo(tiny_model, long)
    small = {"n_ctx": 1200, "prefill_chunk": 1, "ram_bytes": 10**8}
    async with busy(tiny_model, max_tokens=1150, **small) as (engine, _):
        engine._worker.scheduler.LOOKAHEAD = 16
        assert await collect(engine.submit(long)) == expected
        await settled(engine)
        counters = engine.counters()
        assert (counters["preempted"], counters["prompt_tokens"]) == (1, 1 + 800)


@pytest.mark.parametrize("limit", [{"max_tokens": 1}, {"max_tokens": 60, "stop": ("w",)}, {"max_tokens": 60, "n": 3}])
async def test_answers_are_the_same_in_however_many_chunks_the_prompt_comes(tiny_model, limit):
    asked = [plan(*text(700, seed), **limit) for seed in (33, 34, 33)]
    expected = await solo(tiny_model, *asked)
    async with busy(tiny_model, ram_bytes=10**8) as (engine, stream):
        assert await asyncio.gather(*(collect(engine.submit(one)) for one in asked)) == expected
        stream.cancel()
        await settled(engine)
        counters = engine.counters()
        assert counters["completed"] == 3 * limit.get("n", 1)
        assert [counters[key] for key in ("failed", "used_cells", "restore_failures")] == [0, 0, 0]
