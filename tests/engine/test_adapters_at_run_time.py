"""Adapters that come and go while the engine runs."""

from __future__ import annotations

import asyncio
import random
from array import array
from contextlib import suppress

import pytest
from core.test_adapters import merged

from engine.test_adapter_groups import NAMES, PROMPT, engine_with, merged_text, text
from engine.test_engine import collect, config, plan, settled
from llamafast.config import MAX_LORAS
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.load import load_engine
from llamafast.errors import AdapterInUse, AdapterNotFound, EngineUnavailable, InvalidRequest, ModelNotFound
from recipes import tiny_lora

PATHS = {name: tiny_lora.build(name) for name in NAMES}


async def test_one_that_was_loaded_is_as_if_it_had_been_there(tiny_model, tmp_path):
    engine = engine_with(tiny_model, (NAMES[0], {"name": "a"}), ram_bytes=10**8)
    plain = await text(engine)
    with pytest.raises(ModelNotFound):
        await text(engine, model="b")
    await engine.adapters.load("b", PATHS[NAMES[1]], 0.5)
    assert list(engine.info.adapters) == ["a", "b"]
    assert [(one.id, one.name, one.scale) for one in engine.adapters.listed()] == [(0, "a", 0.0), (1, "b", 0.0)]
    assert await text(engine, model="b") == await merged_text(tiny_model, tmp_path, NAMES[1], 0.5)
    assert await text(engine, model="a") == await merged_text(tiny_model, tmp_path, NAMES[0], 1.0)
    assert await text(engine) == plain
    await engine.close()


async def test_one_that_was_unloaded_leaves_nothing(tiny_model):
    engine = engine_with(tiny_model, (NAMES[0], {"name": "a"}), (NAMES[1], {"name": "b"}), ram_bytes=10**8)
    plain, of_b = await text(engine), await text(engine, model="b")
    await settled(engine)
    before = engine.counters()["cache_states"]
    of_a = await text(engine, model="a")
    await settled(engine)
    assert engine.counters()["cache_states"] > before
    await engine.adapters.unload("a")
    assert engine.counters()["cache_states"] == before
    assert list(engine.info.adapters) == ["b"]
    with pytest.raises(ModelNotFound):
        await text(engine, model="a")
    with pytest.raises(InvalidRequest, match="no adapter 0"):
        await text(engine, lora=((0, 1.0),))
    with pytest.raises(AdapterNotFound):
        await engine.adapters.unload("a")
    assert (await text(engine), await text(engine, lora=((1, 1.0),))) == (plain, of_b)
    # another one in its place is not taken for it, whatever is kept
    await engine.adapters.load("c", PATHS[NAMES[2]])
    assert [(one.id, one.name) for one in engine.adapters.listed()] == [(0, "c"), (1, "b")]
    assert await text(engine, model="c") not in (of_a, of_b, plain)
    await engine.adapters.load("a", PATHS[NAMES[0]])
    assert await text(engine, model="a") == of_a
    await engine.close()


async def test_one_that_requests_have_stays(tiny_model):
    engine = engine_with(tiny_model, (NAMES[0], {"name": "a"}), (NAMES[1], {"name": "b"}))
    alone = await text(engine, model="a", max_tokens=200)
    generation = engine.submit(plan(*PROMPT, model="a", max_tokens=200, ignore_eos=True))
    with pytest.raises(AdapterInUse):
        await engine.adapters.unload("a")
    await engine.adapters.unload("b")
    ((told, _),) = await collect(generation)
    assert told == alone
    # whoever still holds an answer does not have it in use, nor does who left
    left = engine.submit(plan(*PROMPT, model="a", max_tokens=200, ignore_eos=True))
    await anext(left)
    left.cancel()
    await engine.adapters.unload("a")
    assert (generation.finished, list(engine.info.adapters)) == (True, [])
    await text(engine)
    await engine.close()


async def test_what_is_no_adapter_or_has_no_place_is_refused(tiny_model, tmp_path):
    engine = engine_with(tiny_model, (NAMES[0], {"name": "a"}))
    for name in ("a", engine.info.id):
        with pytest.raises(InvalidRequest, match="is taken"):
            await engine.adapters.load(name, PATHS[NAMES[1]])
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(PATHS[NAMES[1]].read_bytes()[:-100])
    for path, fault in [
        (broken, "behind the end"),
        (tmp_path / "gone.gguf", "gone"),
        (tiny_model("tiny-llama"), "type"),
    ]:
        with pytest.raises(InvalidRequest, match=fault):
            await engine.adapters.load("b", path)
    same = await asyncio.gather(*(engine.adapters.load("b", PATHS[NAMES[1]]) for _ in range(4)), return_exceptions=True)
    assert [type(one) for one in same] == [type(None)] + 3 * [InvalidRequest]
    for k in range(MAX_LORAS - 2):
        await engine.adapters.load(f"n{k}", PATHS[NAMES[2]])
    with pytest.raises(InvalidRequest, match="no more are served"):
        await engine.adapters.load("one too many", PATHS[NAMES[2]])
    everything = tuple((id, 0.1) for id in range(MAX_LORAS))
    assert await text(engine, lora=everything) != await text(engine)
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.adapters.unload("a")


async def test_without_a_folder_for_them_none_are_loaded(tiny_model):
    engine = engine_with(tiny_model)
    with pytest.raises(InvalidRequest, match="lora_dir"):
        await engine.adapters.load("a", PATHS[NAMES[0]])
    await engine.close()


async def test_they_come_and_go_beside_streams(tiny_model):
    """What streams say does not change, and those that come get what they ask for or are refused."""
    chance = random.Random(5)
    engine = engine_with(tiny_model, (NAMES[0], {"name": "stays"}), n_seq_max=8, n_ctx=4096)
    truth = {"": await text(engine, max_tokens=60), "stays": await text(engine, model="stays", max_tokens=60)}
    for name in NAMES[1:]:
        await engine.adapters.load(name, PATHS[name])
        truth[name] = await text(engine, model=name, max_tokens=60)
        await engine.adapters.unload(name)
    assert len(set(truth.values())) == 4
    n_refused = n_told = 0

    async def ask(name):
        nonlocal n_refused, n_told
        try:
            told = await text(engine, model=name, max_tokens=60)
        except ModelNotFound:
            n_refused += 1
        else:
            n_told += 1
            assert told == truth[name]

    asked = [asyncio.create_task(ask(name)) for name in ("", "stays")]
    for _ in range(60):
        name = chance.choice(NAMES[1:])
        with suppress(AdapterInUse):
            await (
                engine.adapters.unload(name)
                if name in engine.info.adapters
                else engine.adapters.load(name, PATHS[name])
            )
        asked += [asyncio.create_task(ask(chance.choice([*truth]))) for _ in range(chance.randrange(4))]
        await asyncio.sleep(chance.choice([0, 0.001, 0.01]))
    await asyncio.gather(*asked)
    assert n_told > 30 < n_told + n_refused
    uses = {use.name: use for use in engine.adapters.uses()}
    assert (uses["stays"].running, uses["stays"].waiting) == (0, 0)
    assert uses["stays"].n_requests > 5
    await engine.close()


async def test_requests_for_vectors_choose_as_others_do(tiny_model, tmp_path):
    model = tiny_model("tiny-llama")
    inputs = tuple(array("i", PROMPT[:n]) for n in (20, 35, 7))
    of = {}
    for name, scale in ((NAMES[0], 1.0), (NAMES[1], 0.5), ("", 0.0)):
        path = merged(model, name, scale, tmp_path / f"{name}.gguf") if name else model
        whole = load_engine(config(path, embedding=True, pooling_type=1), path)
        whole.start()
        of[name] = await whole.embed(EmbeddingPlan(inputs=inputs))
        await whole.close()
    engine = engine_with(
        tiny_model, (NAMES[0], {"name": "a"}), (NAMES[1], {"name": "b"}), embedding=True, pooling_type=1
    )
    plans = {
        NAMES[0]: EmbeddingPlan(inputs=inputs, model="a"),
        NAMES[1]: EmbeddingPlan(inputs=inputs, lora=((1, 0.5),)),
        "": EmbeddingPlan(inputs=inputs),
    }
    at_once = await asyncio.gather(*(engine.embed(plans[name]) for name in [*plans] * 3))
    for name, vectors in zip([*plans] * 3, at_once, strict=True):
        assert farthest(vectors, of[name]) < 1e-4
    engine.adapters.apply({0: 1.0})
    assert farthest(await engine.embed(plans[""]), of[NAMES[0]]) < 1e-4
    assert apart(of[""][0], of[NAMES[0]][0]) > 1e-2
    await engine.adapters.unload("b")
    with pytest.raises(ModelNotFound):
        await engine.embed(EmbeddingPlan(inputs=inputs, model="b"))
    await engine.close()


def apart(one, other):
    return max(abs(x - y) for x, y in zip(array("f", one), array("f", other), strict=True))


def farthest(ones, others):
    return max(apart(one, other) for one, other in zip(ones, others, strict=True))
