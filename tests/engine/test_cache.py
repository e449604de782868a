"""Prefixes in host RAM: what is kept, what goes, and that nobody sees a difference but time."""

from __future__ import annotations

import asyncio
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.test_engine import GREEDY, collect, config, settled
from llamafast.engine.cache import MAX_ENTRIES, MIN_TOKENS, PrefixCache
from llamafast.engine.load import load_engine
from llamafast.engine.memory import available_bytes
from llamafast.engine.types import Plan, SamplingParams


def tokens(*parts):
    return array("i", [token for part in parts for token in part])


LONG = range(1000, 1200)


def test_a_longer_prompt_finds_what_it_continues():
    cache = PrefixCache(1000)
    cache.put(tokens(LONG), b"state")
    assert cache.find(tokens(LONG, [1, 2]), 0) == (b"state", 200)
    assert cache.find(tokens(LONG[:90], [1, 2]), 0) == (b"state", 90)
    assert cache.find(tokens(LONG), 0) == (b"state", 199)
    assert cache.find(tokens([5], LONG), 0) is None
    assert cache.find(tokens(LONG, [1, 2]), 200) is None


def test_a_state_that_is_mostly_something_else_is_left_alone():
    cache = PrefixCache(10**6)
    cache.put(tokens(LONG[:40], range(100_000, 104_000)), b"long")
    assert cache.find(tokens(LONG[:40], [1, 2]), 0) is None
    assert cache.find(tokens(LONG[:40], range(100_000, 100_100), [1]), 0) == (b"long", 140)


def test_the_shortest_of_equals_is_restored():
    cache = PrefixCache(10**6)
    cache.put(tokens(LONG[:64], range(500)), b"long")
    cache.put(tokens(LONG[:64], range(9000, 9050)), b"short")
    assert cache.find(tokens(LONG[:64], [1, 2]), 0) == (b"short", 64)


def test_only_news_is_wanted():
    cache = PrefixCache(1000)
    assert not cache.wants(tokens(range(MIN_TOKENS - 1)), 1)
    assert not cache.wants(tokens(LONG), 1001)
    assert cache.wants(tokens(LONG), 1000)
    cache.put(tokens(LONG), b"x" * 10)
    assert not cache.wants(tokens(LONG), 10)
    assert not cache.wants(tokens(LONG[:64]), 10)
    assert cache.wants(tokens(LONG, [1]), 10)


def test_what_a_state_continues_is_not_kept_twice():
    cache = PrefixCache(1000)
    cache.put(tokens(LONG), b"x" * 10)
    cache.put(tokens(LONG, LONG), b"x" * 20)
    assert (len(cache), cache.used_bytes) == (1, 20)


def test_the_least_recently_used_goes_first():
    cache = PrefixCache(100)
    for first in range(10):
        cache.put(tokens([first], LONG), b"x" * 10)
    assert cache.find(tokens([0], LONG, [1]), 0)
    cache.put(tokens([99], LONG), b"x" * 20)
    assert cache.used_bytes == 100
    assert cache.evictions == 2
    kept = [first for first in range(10) if cache.find(tokens([first], LONG, [1]), 0)]
    assert kept == [0, 3, 4, 5, 6, 7, 8, 9]


def test_more_entries_than_the_index_knows():
    cache = PrefixCache(10**9)
    for first in range(MAX_ENTRIES + 44):
        cache.put(tokens([first], LONG), b"x")
    assert (len(cache), cache.evictions) == (MAX_ENTRIES, 44)


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=4), st.integers(1, 60)), max_size=40))
def test_the_budget_holds_and_every_hit_is_true(states):
    """States named by their path of 20-token parts: a hit begins with what was asked for."""
    cache = PrefixCache(200)
    stored = {}
    for path, size in states:
        key = tokens(range(50), *([100 * part + i for i in range(20)] for part in path))
        hit = cache.find(key, 0)
        if hit is not None:
            saved, n = hit
            assert stored[saved][:n] == key[:n]
            assert n < len(key)
        if cache.wants(key, size):
            saved = bytes([len(stored) % 256, len(stored) // 256]) + b"x" * (size - 2)
            stored[saved] = key
            cache.put(key, saved)
        assert cache.used_bytes <= 200 + 2


def test_memory_is_the_lesser_of_machine_and_cgroup(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 1_024_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600000\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 1_024_000
    (tmp_path / "memory.max").write_text("1000000\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 400_000
    assert available_bytes(tmp_path / "nothing", tmp_path / "nothing") == 0


def ask(engine, prompt, max_tokens=8):
    generation = engine.submit(Plan(prompts=(array("i", prompt),), sampling=GREEDY, max_tokens=max_tokens))
    return generation, collect(generation)


@pytest.mark.parametrize("kv_unified", [True, False])
async def test_a_conversation_computes_only_what_is_new(tiny_model, kv_unified):
    path = tiny_model("tiny-llama")
    engines = [load_engine(config(path, n_ctx=2048, kv_unified=kv_unified, ram_bytes=ram), path) for ram in (10**8, 0)]
    for engine in engines:
        engine.start()
    history, cached = [33 + i % 200 for i in range(60)], []
    for turn in range(5):
        answers = []
        for engine in engines:
            generation, answer = ask(engine, history)
            answers.append(await answer)
            await settled(engine)
            if engine is engines[0]:
                cached.append((generation.cached_tokens, len(history)))
        assert answers[0] == answers[1]
        said = engine.tokenizer.tokenize(answers[0][0][0], add_special=False, parse_special=False)
        history = [*history, *said, *range(40 + turn, 50 + turn)]
    assert cached[0] == (0, 60)
    assert all(n >= before for (n, _), (_, before) in zip(cached[1:], cached, strict=False))
    for engine in engines:
        await engine.close()


async def test_an_abandoned_prompt_is_kept(tiny_model):
    path = tiny_model("tiny-llama")
    engine = load_engine(config(path, n_ctx=1200, ram_bytes=10**8), path)
    engine.start()
    abandoned = engine.submit(Plan(prompts=(array("i", [40] * 100),), sampling=GREEDY))
    await anext(abandoned)
    abandoned.cancel()
    await settled(engine)
    generation, answer = ask(engine, [*[40] * 100, 50])
    await answer
    assert generation.cached_tokens == 100
    await engine.close()


async def test_a_kind_of_memory_that_cannot_be_cut_keeps_nothing(tiny_model):
    path = tiny_model("tiny-qwen35")
    engine = load_engine(config(path, ram_bytes=10**8), path)
    engine.start()
    await ask(engine, [40] * 100)[1]
    await settled(engine)
    generation, answer = ask(engine, [*[40] * 100, 50])
    await answer
    assert generation.cached_tokens == 0
    await engine.close()


PROMPTS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 150), st.integers(33, 36)), min_size=1, max_size=10)


@settings(max_examples=12, deadline=None)
@given(rounds=st.lists(PROMPTS, min_size=1, max_size=3), ram=st.sampled_from([40_000, 10**8]))
def test_the_cache_never_shows_in_the_text(tiny_model, rounds, ram):
    """Rounds of concurrent requests out of common parts: seeded text with the cache on equals the text with it off."""
    path = tiny_model("tiny-llama")
    base = [[33 + (k * 7 + i * (k + 3)) % 250 for i in range(150)] for k in range(3)]

    async def run(ram_bytes):
        engine = load_engine(config(path, n_ctx=1024, ram_bytes=ram_bytes), path)
        engine.start()
        answers = []
        for prompts in rounds:
            plans = [
                Plan(
                    prompts=(array("i", [*base[k][:n], last]),), max_tokens=12,
                    sampling=SamplingParams(temperature=1.0, seed=n),
                )
                for k, n, last in prompts
            ]  # fmt: skip
            answers.append(await asyncio.gather(*(collect(engine.submit(plan)) for plan in plans)))
            await settled(engine)
        await engine.close()
        return answers

    assert asyncio.run(run(ram)) == asyncio.run(run(0))


async def test_a_sliding_window_is_neither_kept_nor_shared(tiny_model):
    """Its saved states lack what slid out; a hit would answer from a prompt with holes."""
    path = tiny_model("tiny-gemma3-swa")
    prompt = [33 + (i * 7) % 200 for i in range(300)]
    answers = []
    for ram in (10**8, 0):
        engine = load_engine(config(path, n_ctx=2048, ram_bytes=ram), path)
        engine.start()
        await ask(engine, prompt)[1]
        await settled(engine)
        generation, answer = ask(engine, [*prompt[:100], 40], 30)
        answers.append(await answer)
        assert generation.cached_tokens == 0
        await engine.close()
    assert answers[0] == answers[1]
