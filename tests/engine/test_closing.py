"""The end of an engine: what runs has its time, and what is left is told."""

from __future__ import annotations

import asyncio
import gc

import pytest
from support.engines import collect, config, plan
from support.standing_clock import stand_still

from llamafast.engine import engine as engine_module
from llamafast.engine.load import load_engine
from llamafast.engine.pace import Pace
from llamafast.errors import (
    EngineUnavailable,
)


async def test_closing_ends_requests_whose_choices_are_still_made(tiny_model, monkeypatch):
    engine = load_engine(config(tiny_model("tiny-llama")), tiny_model("tiny-llama"))
    monkeypatch.setattr(engine, "_pace", Pace(making_seconds=0))
    engine.start()
    generation = engine.submit(plan(40, n=1000, max_tokens=400, ignore_eos=True))
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await collect(generation)
    assert len(generation.sequences) < 1000


@pytest.mark.parametrize(("drain", "running", "expected"), [(0, 0, 1), (3, 0, 3), (3, 1, 1), (60, 0, 5)])
async def test_what_is_left_of_the_drain_is_for_what_outlives_it(tiny_model, monkeypatch, drain, running, expected):
    monkeypatch.setattr(engine_module, "monotonic", stand_still(monkeypatch))
    engine = load_engine(config(tiny_model("tiny-llama"), n_ctx=8192), tiny_model("tiny-llama"))
    engine.start()
    close, seconds = engine._worker.close, []
    monkeypatch.setattr(engine._worker, "close", lambda keeping: (seconds.append(keeping), close(keeping)))
    long = [engine.submit(plan(40, max_tokens=None, ignore_eos=True)) for _ in range(running)]
    await engine.close(drain)
    assert seconds == pytest.approx([expected])
    for one in long:
        with pytest.raises(EngineUnavailable):
            await collect(one)


async def test_closing_drains_then_fails_what_is_left(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama"), n_ctx=8192), tiny_model("tiny-llama"))
    engine.start()
    short, long = engine.submit(plan(40)), engine.submit(plan(40, max_tokens=None, ignore_eos=True))
    closing = asyncio.create_task(engine.close(1.0))
    assert (await collect(short))[0][1] == "length"
    with pytest.raises(EngineUnavailable):
        await collect(long)
    with pytest.raises(EngineUnavailable):
        engine.submit(plan(40))
    await closing
    gc.collect()


@pytest.mark.parametrize("before", [True, False])
async def test_closing_can_be_hurried(tiny_model, before):
    engine = load_engine(config(tiny_model("tiny-llama"), n_ctx=8192), tiny_model("tiny-llama"))
    engine.start()
    long = engine.submit(plan(40, max_tokens=None, ignore_eos=True))
    if before:
        engine.hurry()
    closing = asyncio.create_task(engine.close(60))
    await asyncio.sleep(0)
    if not before:
        assert not closing.done()
        engine.hurry()
    with pytest.raises(EngineUnavailable):
        await collect(long)
    await asyncio.wait_for(closing, 30)
