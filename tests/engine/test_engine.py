"""The engine's door over a real tiny model."""

from __future__ import annotations

import asyncio
import itertools
import threading
from array import array

import pytest
from support.engines import GREEDY, collect, config, plan, settled

from llamafast._core.dry import Breakers
from llamafast._core.sampler import Sampler
from llamafast.config import Config, ModelConfig
from llamafast.engine.load import load_engine
from llamafast.engine.model_facts import FimTokens
from llamafast.engine.pace import Pace
from llamafast.engine.recommended import recommended_sampling
from llamafast.engine.types import Plan, SamplingParams
from llamafast.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailure,
    InvalidRequest,
    QueueFull,
)


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


async def test_many_choices_are_made_over_several_turns(engine, monkeypatch):
    seeded = plan(40, n=20, sampling=SamplingParams(temperature=1, seed=7), max_tokens=3)
    at_once = await collect(engine.submit(seeded))
    monkeypatch.setattr(engine, "_pace", Pace(making_seconds=0))
    generation = engine.submit(seeded)
    made = []
    while len(generation.sequences) < 20:
        made.append(len(generation.sequences))
        await asyncio.sleep(0)
    assert made[0] == 1
    assert {after - before for before, after in itertools.pairwise(made)} <= {0, 1}
    assert await collect(generation) == at_once
    given_up = engine.submit(seeded)
    await asyncio.sleep(0)
    given_up.cancel()
    n_made = len(given_up.sequences)
    await collect(engine.submit(plan(40)))
    assert len(given_up.sequences) == n_made < 20
    await settled(engine)


async def test_choices_that_cannot_be_made_end_their_request_only(engine, monkeypatch):
    monkeypatch.setattr(engine, "_pace", Pace(making_seconds=0))
    make = Sampler.reseeded

    class Failing(Sampler):
        def reseeded(self, seed):
            if seed == 11:
                raise MemoryError
            return make(self, seed)

    monkeypatch.setattr("llamafast.engine.sequence_planner.Sampler", Failing)
    seeded = plan(40, n=5, sampling=SamplingParams(seed=8), max_tokens=400, ignore_eos=True)
    generation = engine.submit(seeded)
    with pytest.raises(EngineFailure):
        await collect(generation)
    with pytest.raises(MemoryError):
        engine.submit(plan(40, sampling=SamplingParams(seed=11)))
    await settled(engine)
    assert len(await collect(engine.submit(plan(40, n=2)))) == 2


async def test_breakers_are_found_off_the_event_loop(engine, monkeypatch):
    threads = []
    spelling = Breakers.spelling

    class Watched(Breakers):
        @staticmethod
        def spelling(*args):
            threads.append(threading.current_thread())
            return spelling(*args)

    monkeypatch.setattr("llamafast.engine.sequence_planner.Breakers", Watched)
    plans = [
        plan(40, sampling=SamplingParams(dry_multiplier=0.8, dry_sequence_breakers=(chr(33 + k % 70),)))
        for k in range(100)
    ]
    for one in plans:
        await engine.prepare(one)
        engine.submit(one).cancel()
    assert 70 <= len(threads) < 140
    assert threading.main_thread() not in threads
    await engine.prepare(plan(40))
    await settled(engine)


def test_the_tokens_by_which_texts_are_filled_in_are_the_ggufs(tiny_model):
    path = tiny_model("tiny-llama")
    engine = load_engine(config(path), path)
    assert engine.tokenizer.text(engine.info.fim.prefix) == "<|fim_prefix|>"
    assert (engine.info.fim.repository, engine.info.fim.file) == (-1, -1)
    names = {"fim_pre": 40, "fim_suf": 41, "fim_mid": 42, "fim_pad": 43, "fim_rep": 44, "fim_sep": 45}
    overrides = {f"tokenizer.ggml.{name}_token_id": token for name, token in names.items()}
    assert load_engine(config(path, kv_overrides=overrides), path).info.fim == FimTokens(*names.values())


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
    settings = config(tiny_model("tiny-llama"), max_queue=1, n_seq_max=1, n_ctx=8192)
    engine = load_engine(settings, tiny_model("tiny-llama"))
    engine.start()
    running = engine.submit(plan(40, max_tokens=8000, ignore_eos=True))
    await anext(running)
    waiting = engine.submit(plan(40))
    while engine.counters()["waiting"] == 0:
        await asyncio.sleep(0.001)
    with pytest.raises(QueueFull):
        engine.submit(plan(40))
    running.cancel()
    assert (await collect(waiting))[0][1] == "length"
    await engine.close()


async def test_a_request_for_many_choices_shuts_nobody_out(tiny_model):
    """It fills its share of the queue; others still find a place, and are served before its last choices."""
    settings = config(tiny_model("tiny-llama"), max_queue=4, n_seq_max=1, n_ctx=8192)
    engine = load_engine(settings, tiny_model("tiny-llama"))
    engine.start()
    running = engine.submit(plan(40, max_tokens=8000, ignore_eos=True))
    await anext(running)
    many = engine.submit(plan(41, n=16))
    while engine.counters()["waiting"] < 16:
        await asyncio.sleep(0.001)
    with pytest.raises(QueueFull, match="16 choices wait already"):
        engine.submit(plan(42, n=2))
    others = [engine.submit(plan(43 + k)) for k in range(3)]
    with pytest.raises(QueueFull, match="4 requests"):
        engine.submit(plan(50))
    running.cancel()
    answers = [asyncio.create_task(collect(generation)) for generation in (many, *others)]
    ended: list[asyncio.Task] = []
    for answer in answers:
        answer.add_done_callback(ended.append)
    await asyncio.wait(answers)
    assert ended[-1] is answers[0]
    assert len(answers[0].result()) == 16
    await engine.close()


async def test_no_client_can_name_the_salt_of_a_scored_prompt(engine):
    """Tags count upwards: a client that sends numbers as its salt meets none of them."""
    prompt = [33 + 5 * k % 300 for k in range(170)]
    for tag in range(12):
        for salt in (str(tag), f"\0{tag}", f"\xff{tag}"):
            await collect(engine.submit(plan(*prompt, cache_salt=salt, max_tokens=1)))
            scored = engine.submit(plan(*prompt, max_tokens=1, top_logprobs=0, prompt_logprobs=True))
            entries = [entry async for batch in scored for event in batch for entry in event.prompt_logprobs or ()]
            assert (scored.cached_tokens, len(entries)) == (0, len(prompt) - 1)


async def test_priorities_are_for_those_who_enable_them(engine, tiny_model):
    with pytest.raises(InvalidRequest, match="priority"):
        engine.submit(plan(40, priority=-1))


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        ({"n_batch": 8, "n_seq_max": 16}, ConfigError, "n_seq_max"),
        ({"max_seq_len": 8000, "n_ctx": 512}, ConfigError, "model.max_seq_len: 8000 is more than this context's 512"),
        ({"max_seq_len": 9000, "n_ctx": 10_000}, ConfigError, "than the 8192 that the model was trained for"),
        ({"tensor_split": (1.0,) * 300}, ConfigError, "tensor_split"),
    ],
)
def test_settings_the_model_cannot_have(tiny_model, model, error, text):
    with pytest.raises(error, match=text):
        load_engine(config(tiny_model("tiny-llama"), **model), tiny_model("tiny-llama"))


def test_defaults_without_tuning(tiny_model):
    path = tiny_model("tiny-llama")
    engine = load_engine(Config(model=ModelConfig(path=str(path), threads=1, n_ctx=2048)), path)
    assert (engine.counters()["free_sequences"], engine.info.n_seq_max) == (64, 64)
    hybrid = tiny_model("tiny-qwen35")
    engine = load_engine(Config(model=ModelConfig(path=str(hybrid), threads=1, n_ctx=2048)), hybrid)
    assert (engine.counters()["free_sequences"], engine.info.n_seq_max) == (8, 8)


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


RARE = SamplingParams(
    temperature=1.3, seed=7, typical_p=0.9, mirostat=2, dry_multiplier=0.8, frequency_penalty=0.3, xtc_probability=0.5
)


async def test_rare_sampling_does_not_depend_on_neighbours(tiny_model):
    """Mirostat remembers, DRY looks back: alone and in a crowd the text is the same."""
    engine = load_engine(config(tiny_model("tiny-llama"), n_ctx=256, n_seq_max=8), tiny_model("tiny-llama"))
    engine.start()
    wanted = plan(40, 41, 42, sampling=RARE, max_tokens=100, ignore_eos=True)
    alone = await collect(engine.submit(wanted))
    crowd = [engine.submit(plan(50 + i, 60, max_tokens=80, ignore_eos=True)) for i in range(4)]
    among = engine.submit(wanted)
    assert await collect(among) == alone
    for generation in crowd:
        await collect(generation)
    await engine.close()


async def test_breakers_that_too_many_tokens_spell_are_refused(engine, monkeypatch):
    monkeypatch.setattr("llamafast.engine.sequence_planner.MAX_BREAKERS", 3)
    dry = SamplingParams(dry_multiplier=0.8, dry_sequence_breakers=("\n", "a"))
    with pytest.raises(InvalidRequest, match="more than 3 tokens spell 'a'") as caught:
        engine.submit(plan(40, 41, sampling=dry))
    assert caught.value.param == "dry_sequence_breakers"
    await collect(engine.submit(plan(40, 41, sampling=SamplingParams(dry_multiplier=0.8, dry_sequence_breakers=()))))


def test_recommended_sampling(caplog):
    class Gguf:
        def metadata(self, key):
            return {
                "general.sampling.temp": "0.3", "general.sampling.top_k": "64", "general.sampling.top_p": "7",
                "general.sampling.min_p": "x", "general.sampling.penalty_repeat": "1.05",
                "general.sampling.sequence": "top_k;temperature", "general.sampling.mirostat": "9",
            }.get(key)  # fmt: skip

    assert recommended_sampling(Gguf()) == SamplingParams(
        temperature=0.3, top_k=64, repetition_penalty=1.05, samplers=("top_k", "temperature")
    )
    assert [record.message.split(" is ")[0] for record in caplog.records] == [
        "the model's recommended top_p", "the model's recommended min_p", "the model's recommended mirostat",
    ]  # fmt: skip
