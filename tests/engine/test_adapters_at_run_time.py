"""Adapters that come and go while the engine runs."""

from __future__ import annotations

import asyncio
import random
import weakref
from array import array
from contextlib import suppress

import pytest
from core.test_adapters import merged
from msgspec.structs import replace
from support import tiny_encoders
from support.engines import collect, config, plan, settled, standing

from engine.test_adapter_groups import NAMES, PROMPT, Defined, engine_with, loaded, merged_text, text
from llamafast._core.adapters import Adapter
from llamafast._core.context import Context
from llamafast._core.gguf import Gguf
from llamafast._core.model import Model
from llamafast.config import MAX_LORAS, DiskCacheConfig, LoraConfig
from llamafast.engine import disk_places
from llamafast.engine.adapters import Adapters
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.load import load_engine
from llamafast.errors import (
    AdapterInUse,
    AdapterNotFound,
    ConfigError,
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    ModelNotFound,
)
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
    assert [(one.id, one.name) for one in engine.adapters.listed()] == [(1, "b"), (2, "c")]
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
    everything = tuple((one.id, 0.1) for one in engine.adapters.listed())
    assert len(everything) == MAX_LORAS
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
    engine.adapters.apply([(0, 1.0)])
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


ENCODER_TENSORS = ("attn_q.weight", "ffn_up.weight", "token_embd.weight", "position_embd.weight", "token_types.weight",
                   "cls.weight", "attn_q.bias")  # fmt: skip


@pytest.mark.parametrize("what", ENCODER_TENSORS)
async def test_one_that_llama_cpp_would_not_apply_is_refused(tmp_path, monkeypatch, what):
    """It takes a pair for any weight, and its graphs use those of some."""
    model = tiny_encoders.build("tiny-ranker")
    shapes = {name: tensor.shape[:2] for name, tensor in Gguf(str(model)).tensors().items() if name.endswith(what)}
    assert shapes
    monkeypatch.setitem(tiny_lora.LORAS, "it", tiny_lora.Lora("bert", shapes, 3, size=1.0))
    path, inputs = tmp_path / "it.gguf", (array("i", PROMPT[:9]), array("i", PROMPT[3:17]))
    tiny_lora.write(path, tiny_lora.LORAS["it"])
    asked = config(model, embedding=True, loras=(LoraConfig(path=str(path), name="it"),))
    if what not in ("attn_q.weight", "ffn_up.weight", "token_embd.weight"):
        with pytest.raises(ConfigError, match=rf"model.loras\[0\]: .*it\.gguf: .*{next(iter(shapes))}"):
            load_engine(asked, model, loras=[path])
        return
    plans = [EmbeddingPlan(inputs=inputs, normalize=-1, model=name) for name in ("it", "")]
    engine = load_engine(asked, model, loras=[path])
    engine.start()
    has_it, has_none = [await engine.embed(plan) for plan in plans]
    await engine.close()
    whole_path = merged(model, "it", 1.0, tmp_path / "merged.gguf")
    whole = load_engine(config(whole_path, embedding=True), whole_path)
    whole.start()
    assert farthest(has_it, await whole.embed(plans[1])) < 1e-4 < 1e-2 < farthest(has_it, has_none)
    await whole.close()


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("leaves", [False, True])
async def test_what_has_just_ended_leaves_nothing_either(tiny_model, tmp_path, monkeypatch, below, leaves):
    monkeypatch.setattr(disk_places, "LEAST_RAM", 10**8)
    disk = DiskCacheConfig(path=str(tmp_path / "disk"), max_bytes=10**8, min_tokens=8) if below else None
    engine = engine_with(tiny_model, (NAMES[0], {"name": "a"}), ram_bytes=10**8, disk_cache=disk)
    before = engine.counters()["cache_bytes"]
    for _ in range(2):
        generation = engine.submit(plan(*PROMPT, model="a", max_tokens=40, ignore_eos=True))
        if leaves:
            await anext(generation)
            generation.cancel()
        else:
            await collect(generation)
    await engine.adapters.unload("a")
    await settled(engine)
    # of what lies on a disk alone a few numbers stay
    assert engine.counters()["cache_states"] == 0
    assert engine.counters()["cache_bytes"] - before < 3000
    await engine.close()


async def test_what_is_ordered_while_cancels_are_taken_waits_for_those_behind_it(tiny_model, monkeypatch):
    """Else an adapter were taken from a sequence that runs on."""
    engine = engine_with(tiny_model, (NAMES[0], {"name": "a"}))
    worker, seen = engine._worker, []

    def cancel(tags):
        worker.do(lambda: seen.append("called"))
        cancel_really(tags)
        seen.append("cancelled")

    cancel_really = worker._cancel
    monkeypatch.setattr(worker, "_cancel", cancel)
    take = worker._orders.take
    monkeypatch.setattr(worker._orders, "take", lambda: (take(), seen.append("taken"))[0])
    generation = engine.submit(plan(*PROMPT, model="a", max_tokens=200, ignore_eos=True))
    async with standing(engine, lambda: engine.counters()["running"]):
        generation.cancel()
    async with asyncio.timeout(30):
        while "called" not in seen:
            worker.wake()
            await asyncio.sleep(0.001)
    at = seen.index("cancelled")
    assert seen[at : at + 3] == ["cancelled", "taken", "called"]
    await engine.close()


async def test_the_models_file_is_read_once(tiny_model, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_model("tiny-llama").read_bytes())
    asked = config(path, n_ctx=2048)
    engine = load_engine(replace(asked, server=replace(asked.server, lora_dir=str(tmp_path))), path)
    engine.start()
    path.unlink()
    await engine.adapters.load("a", PATHS[NAMES[0]])
    assert await text(engine, model="a") != await text(engine)
    await engine.close()


async def test_who_is_refused_has_had_none(tiny_model):
    engine = engine_with(tiny_model, (NAMES[0], {"name": "a"}), (NAMES[1], {}))
    with pytest.raises(ContextLengthExceeded):
        engine.submit(plan(*PROMPT * 100, model="a"))
    assert [use.n_requests for use in engine.adapters.uses()] == [0, 0]
    await text(engine)
    assert [(use.id, use.name, use.n_requests) for use in engine.adapters.uses()] == [(0, "a", 0), (1, None, 1)]
    await engine.close()


def test_one_that_was_released_is_in_no_group(tiny_model):
    model = Model(str(tiny_model("tiny-llama")))
    context = Context(model, n_ctx=64, n_batch=64, n_ubatch=64, n_seq_max=1)
    adapter = Adapter(model, str(PATHS[NAMES[0]]), 8.0)
    context.adapters.define(1, [(adapter, 1.0)])
    context.adapters.forget(adapter)
    adapter.release()
    adapter.release()
    with pytest.raises(ValueError, match="released"):
        context.adapters.define(1, [(adapter, 1.0)])


def test_a_group_may_go_while_one_of_its_adapters_is_unloaded():
    """The engine thread drops the last sequence that has it."""
    one = Adapters(loaded(("a", 1.0, 0)), Defined())
    group = one.group("a")
    (members,) = one._groups

    class Vanishing(weakref.WeakValueDictionary):
        def __iter__(self):
            yield from (members, ((0, 0.5),))

    one._groups = Vanishing({members: group})
    with pytest.raises(AttributeError, match="forget"):  # which the fake home does not
        asyncio.run(one.unload("a"))
    assert list(one.names) == []
