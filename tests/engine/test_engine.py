"""The engine's door over a real tiny model."""

from __future__ import annotations

import asyncio
import gc
from array import array

import pytest

from llamafast.config import CacheConfig, Config, ModelConfig, SchedulerConfig, ServerConfig
from llamafast.engine.load import load_engine
from llamafast.engine.types import Plan, SamplingParams
from llamafast.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
)

GREEDY = SamplingParams(temperature=0)


def config(path, *, max_queue=512, ram_bytes=0, prefill_chunk=None, **model) -> Config:
    settings = {"path": str(path), "n_ctx": 512, "n_seq_max": 4, "threads": 1, "flash_attn": False}
    return Config(
        model=ModelConfig(**settings | model),
        server=ServerConfig(max_queue=max_queue),
        cache=CacheConfig(ram_bytes=ram_bytes),
        scheduler=SchedulerConfig(prefill_chunk=prefill_chunk),
    )


@pytest.fixture
async def engine(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama")), tiny_model("tiny-llama"))
    engine.start()
    yield engine
    await engine.close()


def plan(*prompt, **options):
    return Plan(prompts=(array("i", prompt),), **{"sampling": GREEDY, "max_tokens": 8} | options)


async def settled(engine):
    """The last Event leaves before the engine thread has tidied up."""
    async with asyncio.timeout(10):
        while engine.counters()["running"]:
            await asyncio.sleep(0.001)


async def collect(generation):
    texts = {}
    async for batch in generation:
        for event in batch:
            text, _ = texts.get(event.index, ("", None))
            texts[event.index] = (text + event.text, event.finish_reason)
    return [texts[index] for index in sorted(texts)]


async def test_choices_of_many_prompts(engine):
    both = Plan(prompts=(array("i", [40, 41]), array("i", [50])), n=2, sampling=GREEDY, max_tokens=5)
    generation = engine.submit(both)
    answers = await collect(generation)
    assert answers[0] == answers[1] != answers[2] == answers[3]
    assert (generation.prompt_tokens, generation.completion_tokens) == (3, 20)


async def test_seeded_choices_differ_and_repeat(engine):
    seeded = plan(40, n=3, sampling=SamplingParams(temperature=1, seed=2**64 - 1), max_tokens=12)
    answers = await collect(engine.submit(seeded))
    assert len(set(answers)) == 3
    assert await collect(engine.submit(seeded)) == answers


async def test_nothing_to_generate_ends_at_once(engine):
    generation = engine.submit(plan(40, max_tokens=0))
    assert await collect(generation) == [("", "length")]
    full = engine.submit(plan(*[40] * 512, max_tokens=None))
    assert await collect(full) == [("", "length")]


async def test_the_context_bounds_the_answer(engine):
    generation = engine.submit(plan(*[40] * 500, max_tokens=None, ignore_eos=True))
    assert (await collect(generation))[0][1] == "length"
    assert generation.completion_tokens == 12


async def test_what_cannot_be_served_is_refused_and_leaves_nothing(engine):
    with pytest.raises(ContextLengthExceeded):
        engine.submit(Plan(prompts=(array("i", [40]), array("i", [40] * 513))))
    with pytest.raises(InvalidRequest):
        engine.submit(plan(40, 512))
    with pytest.raises(InvalidRequest):
        engine.submit(plan())
    assert engine.counters()["submitted"] == 0


async def test_many_more_requests_than_fit_all_finish_as_they_would_alone(engine):
    """A context of 512 cells under 24 requests that want up to 300 each: preemption leaves no trace in the text."""
    plans = [plan(*[33 + 7 * i] * (1 + 9 * i), max_tokens=60 + 8 * i, ignore_eos=True) for i in range(24)]
    alone = [await collect(engine.submit(one)) for one in plans[:6]]
    together = await asyncio.gather(*(collect(engine.submit(one)) for one in plans))
    assert together[:6] == alone
    assert all(reason == "length" for ((_, reason),) in together)
    await settled(engine)
    assert engine.counters()["used_cells"] == 0


async def test_preemption_happens_and_does_not_show(tiny_model):
    """Four answers outgrow what admission bet on."""
    engine = load_engine(config(tiny_model("tiny-llama"), n_ctx=1200), tiny_model("tiny-llama"))
    engine.start()
    plans = [plan(40 + i, max_tokens=1000, ignore_eos=True) for i in range(4)]
    alone = [await collect(engine.submit(one)) for one in plans]
    together = await asyncio.gather(*(collect(engine.submit(one)) for one in plans))
    assert together == alone
    assert engine.counters()["preempted"] > 0
    await engine.close()


async def test_a_full_queue_refuses(tiny_model):
    settings = config(tiny_model("tiny-llama"), max_queue=1, n_seq_max=1, n_ctx=4096)
    engine = load_engine(settings, tiny_model("tiny-llama"))
    engine.start()
    running = engine.submit(plan(40, max_tokens=4000, ignore_eos=True))
    await anext(running)
    waiting = engine.submit(plan(40))
    while engine.counters()["waiting"] == 0:
        await asyncio.sleep(0.001)
    with pytest.raises(QueueFull):
        engine.submit(plan(40))
    running.cancel()
    assert (await collect(waiting))[0][1] == "length"
    await engine.close()


async def test_priorities_are_for_those_who_enable_them(engine, tiny_model):
    with pytest.raises(InvalidRequest, match="priority"):
        engine.submit(plan(40, priority=-1))


async def test_closing_drains_then_fails_what_is_left(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama"), n_ctx=8192), tiny_model("tiny-llama"))
    engine.start()
    short, long = engine.submit(plan(40)), engine.submit(plan(40, max_tokens=None, ignore_eos=True))
    closing = asyncio.create_task(engine.close(0.2))
    assert (await collect(short))[0][1] == "length"
    with pytest.raises(EngineUnavailable):
        await collect(long)
    with pytest.raises(EngineUnavailable):
        engine.submit(plan(40))
    await closing
    gc.collect()


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ({"n_batch": 8, "n_seq_max": 16}, ConfigError, "n_seq_max"),
        ({"max_seq_len": 100_000}, ConfigError, "model.max_seq_len"),
        ({"tensor_split": (1.0,) * 300}, ConfigError, "tensor_split"),
    ],
)
def test_settings_the_model_cannot_have(tiny_model, model, error, text):
    with pytest.raises(error, match=text):
        load_engine(config(tiny_model("tiny-llama"), **model), tiny_model("tiny-llama"))


def test_defaults_without_tuning(tiny_model):
    path = tiny_model("tiny-llama")
    engine = load_engine(Config(model=ModelConfig(path=str(path), threads=1, n_ctx=2048)), path)
    assert engine.counters()["free_sequences"] == 64
    hybrid = tiny_model("tiny-qwen35")
    engine = load_engine(Config(model=ModelConfig(path=str(hybrid), threads=1, n_ctx=2048)), hybrid)
    assert engine.counters()["free_sequences"] == 8


@pytest.mark.parametrize("name", ["tiny-gemma3-swa", "tiny-qwen35", "tiny-qwen3moe"])
@pytest.mark.parametrize("kv_unified", [True, False])
async def test_every_kind_of_memory(tiny_model, name, kv_unified):
    path = tiny_model(name)
    engine = load_engine(config(path, n_ctx=2048, kv_unified=kv_unified), path)
    engine.start()
    plans = [plan(*[33 + 5 * i] * (5 + 30 * i), max_tokens=40, ignore_eos=True) for i in range(6)]
    alone = [await collect(engine.submit(one)) for one in plans]
    together = await asyncio.gather(*(collect(engine.submit(one)) for one in plans))
    assert together == alone
    await engine.close()
