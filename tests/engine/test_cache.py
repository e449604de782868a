"""Prefixes in host RAM: what is kept, what goes, and that nobody sees a difference but time."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import GREEDY, collect, config, settled

from llamafast._core.context import UNLIMITED
from llamafast.engine.cache import PrefixCache
from llamafast.engine.load import load_engine
from llamafast.engine.memory import return_large_blocks
from llamafast.engine.save_points import MIN_TOKENS, PART
from llamafast.engine.types import Plan

ROOT = Path(__file__).parents[2]


def tokens(*parts):
    return array("i", [token for part in parts for token in part])


LONG = range(1000, 1200)


def parts(cache, *lists, salt=b"", more_than=0):
    """What a prompt restores."""
    found = cache.find(tokens(*lists, [1]), salt, more_than)
    if found:
        cache.use(found)
    return taken(cache, found)


def taken(cache, found):
    """Parts with their bytes."""
    return [(cache.saved(part.state), part.start, part.stop) for part in found]


def keep(cache, *lists, salt=b"", saved=b"state"):
    """What the worker does once these tokens are in memory; the range that was news."""
    start, stop = cache.unsaved(tokens(*lists), salt)
    if stop:
        cache.put(tokens(*lists)[:stop], salt, saved)
    return start, stop


def test_a_longer_prompt_finds_what_it_continues():
    cache = PrefixCache(10**6)
    assert keep(cache, LONG) == (0, 200)
    assert parts(cache, LONG, [2]) == [(b"state", 0, 200)]
    assert parts(cache, LONG[:90], [2]) == [(b"state", 0, 90)]
    assert taken(cache, cache.find(tokens(LONG), b"", 0)) == [(b"state", 0, 199)]
    assert parts(cache, [5], LONG) == []
    assert parts(cache, LONG, more_than=200 - MIN_TOKENS) == [(b"state", 0, 200)]
    assert parts(cache, LONG, more_than=201 - MIN_TOKENS) == []


def test_what_prompts_have_in_common_is_stored_once():
    cache = PrefixCache(10**6)
    keep(cache, LONG[:100], range(50), saved=b"a")
    assert keep(cache, LONG[:100], range(60, 120), saved=b"b") == (100, 160)
    assert keep(cache, LONG[:100], range(60, 120), range(300, 350), saved=b"c") == (160, 210)
    assert parts(cache, LONG[:100], range(60, 120), range(300, 340)) == [
        (b"a", 0, 100),
        (b"b", 100, 160),
        (b"c", 160, 200),
    ]
    assert cache.n_states == 3


def test_a_few_common_tokens_bind_no_states_together():
    """Else one that nobody wants would stay as long as those that begin like it."""
    cache = PrefixCache(10**6)
    keep(cache, LONG[: MIN_TOKENS - 1], range(50), saved=b"a")
    assert keep(cache, LONG[: MIN_TOKENS - 1], range(60, 120), saved=b"b") == (0, MIN_TOKENS + 59)
    assert parts(cache, LONG[: MIN_TOKENS - 1], range(60, 120)) == [(b"b", 0, MIN_TOKENS + 59)]
    assert parts(cache, LONG[: MIN_TOKENS - 1], range(50)) == [(b"a", 0, MIN_TOKENS + 49)]


def test_only_news_is_saved():
    cache = PrefixCache(10**6)
    assert keep(cache, range(MIN_TOKENS - 1)) == (0, 0)
    keep(cache, LONG)
    assert keep(cache, LONG) == keep(cache, LONG[:64]) == keep(cache, LONG, range(MIN_TOKENS - 1)) == (0, 0)
    assert keep(cache, LONG, range(MIN_TOKENS)) == (200, 200 + MIN_TOKENS)
    assert PrefixCache(0).unsaved(tokens(LONG), b"") == (0, 0)


def test_a_part_is_never_long():
    cache = PrefixCache(10**6)
    assert keep(cache, range(10 * PART)) == (0, 2 * PART)
    assert cache.next_save(0, 10 * PART, ()) == PART
    assert cache.next_save(PART, 10 * PART, ()) == 2 * PART


def test_what_cannot_be_cut_is_found_where_it_was_saved():
    cache = PrefixCache(10**6, n_cuttable=0)
    for length in (100, 200, 140):
        keep(cache, LONG[:length], saved=b"%d" % length)
    assert keep(cache, LONG[:140], range(60), saved=b"branch") == (140, 200)
    assert parts(cache, LONG[:199]) == [(b"100", 0, 100), (b"140", 100, 140)]
    assert parts(cache, LONG) == [(b"100", 0, 100), (b"200", 100, 200)]
    assert parts(cache, LONG[:140], range(60)) == [(b"100", 0, 100), (b"140", 100, 140), (b"branch", 140, 200)]
    assert parts(cache, LONG[:99]) == []


def test_a_short_window_is_cut_anywhere_and_a_long_one_is_not():
    cache = PrefixCache(10**6, n_cuttable=120)
    keep(cache, LONG[:100], saved=b"short")
    keep(cache, LONG, saved=b"long")
    assert parts(cache, LONG[:90]) == [(b"short", 0, 90)]
    assert parts(cache, LONG[:150]) == [(b"short", 0, 100)]
    assert parts(cache, LONG, [2]) == [(b"short", 0, 100), (b"long", 100, 200)]


def test_whole_states_replace_what_they_continue():
    cache = PrefixCache(10**6, in_parts=False)
    keep(cache, LONG[:100], saved=b"short")
    assert keep(cache, LONG, saved=b"long") == (0, 200)
    assert cache.n_states == 1
    assert parts(cache, LONG[:80]) == [(b"long", 0, 80)]
    keep(cache, LONG[:100], range(5000), saved=b"huge")
    assert (cache.n_states, parts(cache, LONG[:100], range(10))[0][0]) == (2, b"huge")
    assert parts(cache, LONG[:100], [3])[0][0] == b"long"


def test_checkpoints_lie_where_they_were_asked_for_and_at_doubling_distances():
    cache = PrefixCache(10**6, n_cuttable=0)
    points, at = [], 0
    while (at := cache.next_save(at, 5000, (700, 4900, 6000))) < 5000:
        points.append(at)
    assert points == [700, 904, 2048, 2952, 3976, 4096, 4488, 4744, 4872, 4900, 4936, 4996]
    assert cache.next_save(5000, 5000, ()) == 6144
    assert PrefixCache(0, n_cuttable=0).next_save(0, 5000, ()) == UNLIMITED


def test_what_was_done_is_counted():
    cache = PrefixCache(50_000, n_cuttable=120)
    keep(cache, LONG[:100])
    keep(cache, LONG)
    parts(cache, LONG[:90])
    parts(cache, LONG, [2])
    parts(cache, [3])
    counts = cache.counts()
    assert (counts["cache_saves"], counts["cache_states"], counts["cache_restores"]) == (2, 2, 2)
    assert (counts["cache_checkpoint_saves"], counts["cache_checkpoints"], counts["cache_checkpoint_hits"]) == (1, 1, 1)
    keep(cache, [4], LONG, saved=b"x" * 40_000)
    keep(cache, [5], LONG, saved=b"x" * 40_000)
    counts = cache.counts()
    assert (counts["evictions_budget"], counts["evictions_replaced"]) == (1, 0)
    assert (counts["cache_states"], counts["cache_checkpoints"]) == (3, 2)
    whole = PrefixCache(50_000, in_parts=False)
    keep(whole, LONG[:100])
    keep(whole, LONG)
    assert (whole.counts()["evictions_budget"], whole.counts()["evictions_replaced"]) == (0, 1)


def test_what_is_only_looked_at_is_worth_no_more():
    cache = PrefixCache(60_000)
    for first in range(10):
        keep(cache, [first], LONG, saved=b"x" * 4000)
    for _ in range(3):
        assert cache.find(tokens([0], LONG, [1]), b"", 0)
    assert cache.counts()["cache_restores"] == 0
    for first in range(10, 30):
        keep(cache, [first], LONG, saved=b"x" * 4000)
    assert not parts(cache, [0], LONG)


def test_tenants_find_nothing_of_each_other():
    cache = PrefixCache(10**6)
    keep(cache, LONG, salt=b"a")
    assert parts(cache, LONG) == parts(cache, LONG, salt=b"b") == []
    assert parts(cache, LONG, salt=b"a") == [(b"state", 0, 200)]


def test_what_is_used_stays_and_what_is_cheap_to_compute_goes():
    cache = PrefixCache(60_000)
    for first in range(10):
        keep(cache, [first], LONG, saved=b"x" * 4000)
    for _ in range(3):
        assert parts(cache, [0], LONG)
    for first in range(10, 30):
        keep(cache, [first], LONG, saved=b"x" * 4000)
    assert parts(cache, [0], LONG)
    assert not parts(cache, [1], LONG)
    keep(cache, [99], LONG[:40], saved=b"x" * 4000)
    keep(cache, [98], LONG, saved=b"x" * 4000)
    assert not parts(cache, [99], LONG[:40])
    assert parts(cache, [98], LONG)


def test_what_was_popular_once_goes_at_last():
    cache = PrefixCache(60_000)
    keep(cache, [0], LONG, saved=b"x" * 4000)
    for _ in range(50):
        parts(cache, [0], LONG)
    for first in range(1, 2000):
        keep(cache, [first], LONG, saved=b"x" * 4000)
    assert not parts(cache, [0], LONG)


def test_thousands_of_prompts_are_kept():
    cache = PrefixCache(10**9)
    for first in range(3000):
        keep(cache, LONG[:64], [first], LONG)
    assert cache.n_states == 3000
    assert all(len(parts(cache, LONG[:64], [first], LONG)) == (2 if first else 1) for first in range(0, 3000, 100))


PATHS = st.lists(st.integers(0, 2), max_size=5).map(tuple)
KINDS = st.sampled_from([(UNLIMITED, True), (UNLIMITED, False), (0, True), (0, False), (90, True), (90, False)])


@given(KINDS, st.lists(st.tuples(PATHS, st.integers(0, 19), st.integers(1, 3000), st.booleans()), max_size=40))
def test_the_budget_holds_and_every_hit_is_true(kind, requests):
    """Prompts named by their path of 35-token parts: what is found is exactly what was saved of the same tokens."""
    n_cuttable, in_parts = kind
    budget = 12_000
    cache = PrefixCache(budget, n_cuttable=n_cuttable, in_parts=in_parts)
    saved_from = {}
    for serial, (path, rest, size, salted) in enumerate(requests):
        key = tokens(*([100 * part + i for i in range(35)] for part in path), [7] * rest)
        salt = b"salt" if salted else b""
        at = 0
        for saved, start, stop in parts(cache, key, salt=salt):
            source, first, last, of = saved_from[saved]
            assert (source[:stop], of) == (key[:stop], salt)
            assert start == (at if in_parts else 0)
            assert first <= start < stop <= last
            assert stop == last or last <= n_cuttable
            at = stop
        start, stop = cache.unsaved(key, salt)
        assert start == 0 or in_parts
        if stop:
            saved = b"%d" % serial + b" " * size
            saved_from[saved] = key[:stop], start, stop, salt
            cache.put(key[:stop], salt, saved)
        assert cache.used_bytes <= budget
    # nothing is left behind when everything goes
    while cache.n_states:
        cache.budget = 0
        cache._evict()
    assert (cache.used_bytes, cache._tree.empty) == (0, True)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def come_and_go():
    """Ten times the budget in states of many sizes; holes between them count too."""
    return_large_blocks()
    chance, budget = random.Random(1), 64 * 2**20
    cache = PrefixCache(budget)
    gc.collect()
    before = resident_bytes()
    for first in range(1300):
        keep(cache, [first], range(chance.randrange(100, 600)), saved=b"x" * chance.randrange(10_000, 1_000_000))
    assert cache.counts()["evictions_budget"] > 1000
    assert cache.used_bytes > 0.9 * budget
    assert resident_bytes() - before <= 1.05 * budget


def test_resident_memory_stays_within_the_budget():
    """In a process of its own: all of its memory counts."""
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", "from engine.test_cache import come_and_go; come_and_go()"]
    done = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


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
