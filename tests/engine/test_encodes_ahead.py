"""Media of requests that wait for their turn are encoded meanwhile."""

from __future__ import annotations

import asyncio

from support.engines import settled

from engine.test_media import answer, media_engine, media_plan, picture
from engine.test_memory_kinds import TEXTS


def long_request(engine):
    return engine.submit(media_plan(TEXTS[0][:10], max_tokens=2000))


async def until(happened):
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0.005)


async def test_a_picture_is_encoded_while_its_request_waits_to_run(tiny_model):
    async with media_engine(tiny_model, "attention", seconds=0.01, n_seq_max=1) as (engine, encoder):
        first = long_request(engine)
        waits = asyncio.create_task(answer(engine, media_plan([50], picture("attention", 1), [51])))
        await until(lambda: encoder.encodings and encoder.encodings[0].rows(1) is not None)
        assert (engine.counters()["running"], engine.counters()["waiting"]) == (1, 1)
        first.cancel()
        text, _ = await waits
        await settled(engine)
        assert encoder.n_asked.total() == 1
        assert encoder.encodings[0].left
    async with media_engine(tiny_model, "attention") as (engine, _):
        assert (await answer(engine, media_plan([50], picture("attention", 1), [51])))[0] == text


async def test_who_leaves_the_queue_wants_no_rows_any_more(tiny_model):
    async with media_engine(tiny_model, "attention", seconds=0.01, n_seq_max=1) as (engine, encoder):
        first = long_request(engine)
        second = engine.submit(media_plan([50], picture("attention", 1), [51]))
        await until(lambda: encoder.encodings)
        second.cancel()
        await until(lambda: encoder.encodings[0].left)
        first.cancel()
        await settled(engine)


async def test_only_the_next_few_are_encoded_ahead(tiny_model):
    async with media_engine(tiny_model, "attention", seconds=0.01, n_seq_max=1) as (engine, encoder):
        first = long_request(engine)
        plans = [media_plan([50], picture("attention", seed), [51], max_tokens=1) for seed in range(8)]
        rest = [asyncio.create_task(answer(engine, plan)) for plan in plans]
        await until(lambda: engine.counters()["waiting"] == 8 and len(encoder.encodings) >= 4)
        assert len(encoder.encodings) == 4
        first.cancel()
        await asyncio.gather(*rest)
        await settled(engine)
        assert max(encoder.n_asked.values()) == 1
        assert all(encoding.left for encoding in encoder.encodings)


async def test_nothing_is_encoded_ahead_whose_rows_are_in_memory(tiny_model):
    async with media_engine(tiny_model, "attention", n_seq_max=1) as (engine, encoder):
        plan = media_plan([50], picture("attention", 1), TEXTS[1][:30])
        await answer(engine, plan)
        first = long_request(engine)
        waits = asyncio.create_task(answer(engine, plan))
        await until(lambda: engine.counters()["waiting"] == 1 or waits.done())
        first.cancel()
        _, cached = await waits
        assert cached > 20
        assert encoder.n_asked.total() == 1
