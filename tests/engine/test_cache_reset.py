"""Forgetting what finished requests computed."""

from __future__ import annotations

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import collect, config, plan, settled

from engine.test_cache import keep, parts
from llamafast._core.context import UNLIMITED
from llamafast._core.states import State
from llamafast.engine.cache import PrefixCache
from llamafast.engine.load import load_engine
from llamafast.errors import EngineUnavailable

PROMPT = tuple(range(100, 300))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90), st.integers(1, 90)), max_size=30),
    st.sampled_from([(UNLIMITED, True), (UNLIMITED, False), (50, False)]),
)
def test_a_cache_that_was_cleared_is_like_a_new_one(prompts, kind):
    n_cuttable, in_parts = kind
    budget = 20_000
    cache, fresh = (PrefixCache(budget, n_cuttable=n_cuttable, in_parts=in_parts) for _ in range(2))

    def fill(cache):
        return [keep(cache, range(common), [1000 + k] * length) for k, common, length in prompts]

    fill(cache)
    held = cache.used_bytes
    assert cache.clear() == held
    assert (cache.used_bytes, cache.n_states, cache.n_checkpoints, cache._tree.empty) == (0, 0, 0, True)
    assert cache.clear() == 0
    assert parts(cache, range(90)) == []
    assert fill(cache) == fill(fresh)
    assert (cache.used_bytes, cache.n_states) == (fresh.used_bytes, fresh.n_states)


def test_what_was_forgotten_is_freed_at_once():
    def states():
        return {id(one): one for one in gc.get_objects() if isinstance(one, State)}

    cache = PrefixCache(1 << 20)
    before = states()  # held: none of the cache's has the address of one that others let go of
    gc.disable()
    try:
        for k in range(20):
            keep(cache, range(100), [1000 + k] * 50)
        ours = states().keys() - before.keys()
        assert len(ours) == 20
        cache.clear()
        assert not ours & states().keys()
    finally:
        gc.enable()


@pytest.fixture
async def engine(tiny_model):
    path = tiny_model("tiny-llama")
    engine = load_engine(config(path, n_ctx=4096, ram_bytes=1 << 26), path)
    engine.start()
    yield engine
    if engine._ends_at is None:
        await engine.close()


async def answer(engine, **options):
    """The text of a fixed prompt, and how much of it was computed before."""
    generation = engine.submit(plan(*PROMPT, **options))
    ((text, _),) = await collect(generation)
    await settled(engine)
    return text, generation.cached_tokens


async def test_after_a_reset_a_prompt_is_computed_again(engine):
    text, cached = await answer(engine)
    assert cached == 0
    assert await answer(engine) == (text, 199)
    held = engine.counters()["cache_bytes"]
    assert await engine.reset_prefix_cache() == held > 0
    assert engine.counters()["cache_bytes"] == 0
    assert await engine.reset_prefix_cache() == 0
    assert await answer(engine) == (text, 0)
    assert await answer(engine) == (text, 199)


async def test_who_runs_goes_on_and_still_shares(engine):
    long = plan(*PROMPT, max_tokens=3500, ignore_eos=True)
    alone = await collect(engine.submit(long))
    running = engine.submit(long)
    first = await anext(running)
    assert await engine.reset_prefix_cache() > 0
    assert not running.finished
    assert (await answer(engine, max_tokens=2))[1] == 199
    ((rest, reason),) = await collect(running)
    assert [(first[0].text + rest, reason)] == alone


async def test_resets_of_many_are_all_answered(engine):
    await answer(engine)
    held = engine.counters()["cache_bytes"]
    freed = await asyncio.gather(*(engine.reset_prefix_cache() for _ in range(20)))
    assert set(freed) <= {held, 0}
    assert held in freed
    given_up = asyncio.create_task(engine.reset_prefix_cache())
    await asyncio.sleep(0)
    given_up.cancel()
    assert await engine.reset_prefix_cache() == 0


async def test_a_reset_that_fails_is_told_to_who_ordered_it(engine, monkeypatch):
    freed = iter([MemoryError(), 5, MemoryError(), 3])

    def forget():
        if isinstance(n_bytes := next(freed), Exception):
            raise n_bytes
        return n_bytes

    monkeypatch.setattr(engine._transfer, "forget_saved", forget)
    told = await asyncio.gather(*(engine.reset_prefix_cache() for _ in range(4)), return_exceptions=True)
    assert [type(one) for one in told] == [MemoryError, int, MemoryError, int]
    await answer(engine)


async def test_a_server_that_shuts_down_resets_nothing(engine, monkeypatch):
    monkeypatch.setattr(engine._worker, "do", lambda call: None)
    waiting = asyncio.create_task(engine.reset_prefix_cache())
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await waiting
    with pytest.raises(EngineUnavailable):
        await engine.reset_prefix_cache()
