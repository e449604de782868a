"""Reuse in every kind of memory: texts with the cache on are the texts of solo runs with it off."""

from __future__ import annotations

import asyncio
import random
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import GREEDY, collect, config, settled

from llamafast.config import LoraConfig
from llamafast.engine.load import load_engine
from llamafast.engine.types import Plan
from recipes import tiny_lora

# name: the model, its settings, and how much of a second turn must be reused at least
KINDS = {
    "unified": ("tiny-llama", {}),
    "partitioned": ("tiny-llama", {"kv_unified": False}),
    "window": ("tiny-gemma3-swa", {"swa_full": False}),
    "window, full": ("tiny-gemma3-swa", {"swa_full": True}),
    "window, partitioned": ("tiny-gemma3-swa", {"swa_full": False, "kv_unified": False}),
    "hybrid": ("tiny-qwen35", {}),
    "hybrid, partitioned": ("tiny-qwen35", {"kv_unified": False}),
    "recurrent": ("tiny-mamba", {}),
}
# Where each takes long those are heavy that differ from others only in how cells are divided.
KIND_PARAMS = [
    pytest.param(kind, marks=pytest.mark.heavy) if kind.endswith(("partitioned", "full")) else kind for kind in KINDS
]
LORAS = {"tiny-llama": "lora-tiny-llama", "tiny-gemma3-swa": "lora-tiny-gemma3", "tiny-qwen35": "lora-tiny-qwen35"}
TEXTS = [[33 + (k * 7 + i * (k + 3)) % 250 for i in range(400)] for k in range(3)]


def start(tiny_model, kind, ram_bytes, encoder=None, draft=None, **settings):
    """With two adapters that nobody has who does not ask, where the model has some; the second is an activated one."""
    name, options = KINDS[kind]
    path = tiny_model(name)
    loras = [tiny_lora.build(kind + LORAS[name]) for kind in ("", "a")] if name in LORAS else []
    named = tuple(LoraConfig(path=str(path), name=f"lora{id}") for id, path in enumerate(loras))
    asked = config(path, **{"n_ctx": 8192, "ram_bytes": ram_bytes, "loras": named} | options | settings)
    engine = load_engine(asked, path, encoder=encoder, loras=loras, draft=draft)
    engine.start()
    return engine


async def answer(engine, prompt, max_tokens=8, **options):
    options = {"sampling": GREEDY, "ignore_eos": True} | options
    generation = engine.submit(Plan(prompts=(array("i", prompt),), max_tokens=max_tokens, **options))
    (text,) = await collect(generation)
    return text, generation.cached_tokens


@pytest.mark.parametrize("kind", KIND_PARAMS)
async def test_a_conversation_computes_only_what_is_new(tiny_model, kind):
    """Each turn continues the last one word for word, as clients that send tokens back do."""
    with_cache, without = [start(tiny_model, kind, ram) for ram in (10**8, 0)]
    history, before = TEXTS[0][:300], 0
    for turn in range(4):
        (text, cached), (expected, _) = [await answer(engine, history, 40) for engine in (with_cache, without)]
        await settled(with_cache)
        assert text == expected
        assert cached >= before
        said = with_cache.tokenizer.tokenize(text[0], add_special=False, parse_special=False)
        # whether the text makes the same tokens again is not certain, but the prompt is there
        before, history = len(history) - 4, [*history, *said, *TEXTS[1][turn * 40 : turn * 40 + 50]]
    assert with_cache.counters()["prefix_hits_ram"] > 800
    for engine in (with_cache, without):
        await engine.close()


@pytest.mark.parametrize("kind", KIND_PARAMS)
async def test_a_burst_computes_its_common_prefix_once(tiny_model, kind):
    engine = start(tiny_model, kind, 10**8)
    prompts = [[*TEXTS[0][:300], *range(40 + 20 * k, 50 + 20 * k)] for k in range(4)]
    together = await asyncio.gather(*(answer(engine, prompt, checkpoints=(300,)) for prompt in prompts))
    await settled(engine)
    assert engine.counters()["prompt_tokens"] == 300 + 4 * 10
    assert sorted(cached for _, cached in together) == [0, 300, 300, 300]
    prompts += [[*TEXTS[0][:300], *range(150 + 20 * k, 160 + 20 * k)] for k in range(4)]
    together += await asyncio.gather(*(answer(engine, prompt) for prompt in prompts[4:]))
    assert engine.counters()["prompt_tokens"] == 300 + 8 * 10
    await engine.close()
    alone = start(tiny_model, kind, 0)
    assert [text for text, _ in together] == [(await answer(alone, prompt))[0] for prompt in prompts]
    await alone.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_branch_goes_on_from_the_last_checkpoint_before_it(tiny_model, kind):
    engine = start(tiny_model, kind, 10**8)
    await answer(engine, TEXTS[0][:400], checkpoints=(250,))
    await settled(engine)
    branches = [[*TEXTS[0][:260], *TEXTS[1][:30]], [*TEXTS[0][:350], *TEXTS[2][:30]]]
    texts = [await answer(engine, branch) for branch in branches]
    counters = engine.counters()
    for what in ("saves", "hits"):
        assert (counters[f"cache_checkpoint_{what}"] >= 2) == (not engine.info.cuts_anywhere)
    assert (counters["cache_checkpoints"] > 0) == (not engine.info.cuts_anywhere)
    for (_, cached), (least, most) in zip(texts, [(250, 260), (336, 350)], strict=True):
        assert least <= cached <= most
    alone = start(tiny_model, kind, 0)
    assert [text for text, _ in texts] == [(await answer(alone, branch))[0] for branch in branches]
    for each in (engine, alone):
        await each.close()


@pytest.mark.parametrize("kind", KIND_PARAMS)
async def test_a_small_memory_finishes_everybody_as_they_would_alone(tiny_model, kind):
    """Cells for about four of 64 requests of random lengths at once."""
    chance = random.Random(5)
    engine, alone = (start(tiny_model, kind, ram, n_ctx=1024, n_seq_max=16 if "part" not in kind else 2)
                     for ram in (200_000, 0))  # fmt: skip
    plans = [([*TEXTS[chance.randrange(3)][: chance.randrange(1, 200)], 33 + k], chance.randrange(1, 150))
             for k in range(64)]  # fmt: skip
    together = await asyncio.gather(*(answer(engine, *plan) for plan in plans))
    for plan, (text, _) in zip(plans, together, strict=True):
        assert text[1] == "length"
        assert text == (await answer(alone, *plan))[0]
    await settled(engine)
    assert engine.counters()["used_cells"] == 0
    for each in (engine, alone):
        await each.close()


TENANT_REQUEST = st.tuples(st.sampled_from(["", "a", "b", "é"]), st.integers(0, 1), st.integers(17, 400))


@pytest.mark.parametrize("kind", ["unified", "partitioned", "hybrid"])
@settings(max_examples=8, deadline=None)
@given(rounds=st.lists(st.lists(TENANT_REQUEST, min_size=1, max_size=5), min_size=1, max_size=4))
def test_a_tenant_reuses_only_what_it_has_sent_itself(tiny_model, kind, rounds):
    async def run():
        engine = start(tiny_model, kind, 10**8)
        sent = {}
        for requests in rounds:
            tasks = [asyncio.create_task(answer(engine, TEXTS[k][:n], 4, cache_salt=salt)) for salt, k, n in requests]
            results = [await task for task in tasks]
            for i, (salt, k, n) in enumerate(requests):
                others = [m for j, (s, t, m) in enumerate(requests) if j != i and (s, t) == (salt, k)]
                assert results[i][1] <= min(n - 1, max([*others, sent.get((salt, k), 0)], default=0))
            for salt, k, n in requests:
                # an answer could go on like the text
                sent[salt, k] = max(sent.get((salt, k), 0), n + 4)
            await settled(engine)
        await engine.close()

    asyncio.run(run())
