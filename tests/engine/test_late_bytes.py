"""Engines over a tier whose bytes come from a thread, later or never: texts stay, and nobody waits for the tier."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
from support.engines import settled
from support.late_bytes import Bringer, LateCache

from engine.test_cache import keep, tokens
from engine.test_memory_kinds import KIND_PARAMS, TEXTS, answer, start
from engine.test_worker import FakeRunner, FakeSequence, arrival
from llamafast._core.sequence import PHASE_RESTORING
from llamafast._core.step import PAUSED
from llamafast.engine import keeping
from llamafast.engine.cache import PrefixCache
from llamafast.engine.kv_transfer import KVTransfer, Parts
from llamafast.engine.pace import Pace
from llamafast.engine.scheduler import Scheduler
from llamafast.engine.worker import Worker

PROMPTS = [[*TEXTS[k % 3][:300], *range(40 + k, 60 + k)] for k in range(4)]


@asynccontextmanager
async def late_engine(tiny_model, monkeypatch, kind, seconds, losses=0.1, ram_bytes=10**8):
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "PrefixCache", LateCache)
        engine = start(tiny_model, kind, ram_bytes)
    bringer = Bringer(engine._worker.transfer._cache, engine._worker.wake, seconds, losses)
    try:
        yield engine, bringer
    finally:
        await engine.close()
        bringer.close()


async def solo_texts(tiny_model, kind):
    alone = start(tiny_model, kind, 0)
    texts = [(await answer(alone, prompt))[0] for prompt in PROMPTS]
    await alone.close()
    return texts


async def texts_together(engine):
    """Of all prompts; the same are asked by others, who leave early."""
    leaving = [asyncio.create_task(answer(engine, prompt)) for prompt in PROMPTS]
    together = asyncio.gather(*(answer(engine, prompt) for prompt in PROMPTS))
    await asyncio.sleep(0.002)
    for task in leaving:
        task.cancel()
    texts = [text for text, _ in await together]
    await asyncio.gather(*leaving, return_exceptions=True)
    await settled(engine)
    cache = engine._worker.transfer._cache
    cache.sink()
    assert not cache._held
    assert cache.used_bytes <= cache.budget
    return texts


@pytest.mark.parametrize("kind", KIND_PARAMS)
async def test_texts_are_the_same_when_bytes_come_late_or_never(tiny_model, monkeypatch, kind):
    truth = await solo_texts(tiny_model, kind)
    async with late_engine(tiny_model, monkeypatch, kind, 0.004) as (engine, _):
        for _ in range(2):
            assert await texts_together(engine) == truth
        assert engine.counters()["prefix_hits_ram"] > 300


async def test_what_waits_for_bytes_does_not_exceed_the_budget(tiny_model, monkeypatch):
    truth = await solo_texts(tiny_model, "unified")
    async with late_engine(tiny_model, monkeypatch, "unified", 0.004, ram_bytes=300_000) as (engine, _):
        for _ in range(4):
            assert await texts_together(engine) == truth


async def running(engine, n):
    """Until so many sequences run, and the engine thread has looked at them."""
    async with asyncio.timeout(30):
        while engine.counters()["running"] < n:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["unified", "hybrid"])
async def test_an_engine_that_waits_for_bytes_serves_others_and_does_not_spin(tiny_model, monkeypatch, kind):
    async with late_engine(tiny_model, monkeypatch, kind, 0.001, losses=0) as (engine, bringer):
        prompt = PROMPTS[0]
        await answer(engine, prompt)
        await settled(engine)
        engine._worker.transfer._cache.sink()
        bringer.gate.clear()
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(answer(engine, [*prompt, 33 + k])) for k in range(2)]
        await running(engine, 2)
        # of the engine thread alone: others run on
        clock = time.pthread_getcpuclockid(engine._worker._thread.ident)
        cpu, wall = time.clock_gettime(clock), time.monotonic()
        await asyncio.sleep(0.3)
        assert time.clock_gettime(clock) - cpu < 0.3 * (time.monotonic() - wall)
        assert engine.stalled() > 0.1
        assert (await answer(engine, TEXTS[1][:50]))[1] == 0
        assert not any(task.done() for task in waiting)
        bringer.gate.set()
        assert all(cached >= 300 for _, cached in await asyncio.gather(*waiting))


def test_no_wake_is_slept_over():
    """A wake may make the next run end before a step: that says nothing of who could go on."""
    runner = FakeRunner(script=[PAUSED] * 9)
    transfer = KVTransfer(runner, PrefixCache(0), Pace())
    worker = Worker(runner, Scheduler(n_seq_max=4, n_cells=None), transfer, lambda *_: None, Pace())
    sequence = FakeSequence(1)
    sequence.phase = PHASE_RESTORING
    worker.enqueue(arrival([sequence]))
    worker._take_orders()
    cache = LateCache(10**6)
    keep(cache, range(50))
    cache.sink()
    transfer._restores[sequence] = Parts(cache, cache.find(tokens(range(50), [1]), b"", 0))
    for wakes, idles in ((True, False), (True, False), (False, True)):
        if wakes:
            worker.wake()
        worker._take_orders()
        worker._shares.round(worker)
        assert worker._idles == idles
    assert not worker.has_work
    worker.wake()
    assert worker.has_work


async def test_what_is_forgotten_while_its_bytes_are_awaited_is_computed(tiny_model, monkeypatch):
    async with late_engine(tiny_model, monkeypatch, "unified", 0.001, losses=0) as (engine, bringer):
        expected, _ = await answer(engine, PROMPTS[0])
        await settled(engine)
        engine._worker.transfer._cache.sink()
        bringer.gate.clear()
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(answer(engine, PROMPTS[0]))
        await running(engine, 1)
        assert not waiting.done()
        await engine.reset_prefix_cache()
        assert await waiting == (expected, 0)
