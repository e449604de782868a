"""The engine's door over a real tiny model."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from array import array

import pytest

from llamafast._core.dry import Breakers
from llamafast._core.sampler import Sampler
from llamafast.config import CacheConfig, Config, ModelConfig, SchedulerConfig, ServerConfig
from llamafast.engine.load import load_engine
from llamafast.engine.pace import Pace
from llamafast.engine.recommended import recommended_sampling
from llamafast.engine.types import FimTokens, Plan, SamplingParams
from llamafast.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
)

GREEDY = SamplingParams(temperature=0)


def config(
    path, *, max_queue=512, ram_bytes=0, prefill_chunk=None, priorities=False, disk_cache=None, **model
) -> Config:
    # random weights make near-ties, which ggml's flash attention and 16-bit keys and values decide by how steps are cut
    exact = {"flash_attn": False, "type_k": 0, "type_v": 0}
    settings = {"path": str(path), "n_ctx": 512, "n_seq_max": 4, "threads": 1} | exact
    return Config(
        model=ModelConfig(**settings | model),
        server=ServerConfig(max_queue=max_queue),
        cache=CacheConfig(ram_bytes=ram_bytes),
        scheduler=SchedulerConfig(prefill_chunk=prefill_chunk, priorities=priorities),
        disk_cache=disk_cache,
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


async def test_closing_ends_requests_whose_choices_are_still_made(tiny_model, monkeypatch):
    engine = load_engine(config(tiny_model("tiny-llama")), tiny_model("tiny-llama"))
    monkeypatch.setattr(engine, "_pace", Pace(making_seconds=0))
    engine.start()
    generation = engine.submit(plan(40, n=1000, max_tokens=400, ignore_eos=True))
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await collect(generation)
    assert len(generation.sequences) < 1000


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


async def test_a_request_for_many_choices_shuts_nobody_out(tiny_model):
    """It fills its share of the queue; others still find a place, and are served before its last choices."""
    settings = config(tiny_model("tiny-llama"), max_queue=4, n_seq_max=1, n_ctx=4096)
    engine = load_engine(settings, tiny_model("tiny-llama"))
    engine.start()
    running = engine.submit(plan(40, max_tokens=4000, ignore_eos=True))
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
    ("drain", "running", "least", "most"), [(0, 0, 1, 1), (3, 0, 2.5, 3), (3, 1, 1, 1), (60, 0, 5, 5)]
)
async def test_what_is_left_of_the_drain_is_for_what_outlives_it(tiny_model, monkeypatch, drain, running, least, most):
    engine = load_engine(config(tiny_model("tiny-llama"), n_ctx=8192), tiny_model("tiny-llama"))
    engine.start()
    close, seconds = engine._worker.close, []
    monkeypatch.setattr(engine._worker, "close", lambda keeping: (seconds.append(keeping), close(keeping)))
    long = [engine.submit(plan(40, max_tokens=None, ignore_eos=True)) for _ in range(running)]
    await engine.close(drain)
    assert least <= seconds[0] <= most
    for one in long:
        with pytest.raises(EngineUnavailable):
            await collect(one)


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
    await asyncio.wait_for(closing, 5)


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


async def test_tokens_that_end_a_choice(engine):
    """A stop token leaves no text and cannot come too soon; it counts as generated."""
    always = SamplingParams(temperature=0, logit_bias=((97, 1000.0),))
    generation = engine.submit(plan(40, 41, sampling=always, stop_token_ids=(97,)))
    assert await collect(generation) == [("", "stop")]
    assert generation.completion_tokens == 1
    generation = engine.submit(plan(40, 41, sampling=always, stop_token_ids=(97,), min_tokens=5))
    ((_, reason),) = await collect(generation)
    assert (generation.completion_tokens, reason) == (6, "stop")
    eos = engine.tokenizer.eog_tokens()[0]
    ending = SamplingParams(temperature=0, logit_bias=((eos, 1000.0),))
    generation = engine.submit(plan(40, 41, sampling=ending, min_tokens=3))
    await collect(generation)
    assert generation.completion_tokens == 4


async def test_which_stop_was_met_is_told(engine):
    async def last(**options):
        events = [event async for batch in engine.submit(plan(40, 41, **options)) for event in batch]
        assert [event.matched_stop for event in events[:-1]] == [None] * (len(events) - 1)
        return events[-1].finish_reason, events[-1].matched_stop

    ((text, _),) = await collect(engine.submit(plan(40, 41, ignore_eos=True)))
    shorter, longer = text[3:5], text[2:5]
    assert text.index(longer) == 2
    always = SamplingParams(temperature=0, logit_bias=((97, 1000.0),))
    for keep_stop in (False, True):
        assert await last(stop=("absent", shorter, longer), keep_stop=keep_stop) == ("stop", longer)
    assert await last(stop=("absent",), stop_token_ids=(96, 97), sampling=always) == ("stop", 97)
    assert await last(stop=("absent",), stop_token_ids=(96,), ignore_eos=True) == ("length", None)
    ending = SamplingParams(temperature=0, logit_bias=((engine.tokenizer.eog_tokens()[0], 1000.0),))
    assert await last(stop=("absent",), sampling=ending) == ("stop", None)


async def test_the_ids_of_all_tokens_are_told_where_they_are_wanted(engine):
    async def ids(*prompt, **options):
        generation = engine.submit(plan(*prompt, tell_tokens=True, **options))
        told = [
            id for event in [event async for batch in generation for event in batch] for id in event.token_ids or ()
        ]
        assert len(told) == generation.completion_tokens
        return told

    ((text, _),) = await collect(engine.submit(plan(40, 41, skip_special_tokens=False)))
    told = await ids(40, 41)
    assert engine.tokenizer.detokenize(array("i", told)) == text
    stopped = await ids(40, 41, stop=(text[1:3],))
    assert 0 < len(stopped) < len(told)
    assert stopped == told[: len(stopped)]
    eos = engine.tokenizer.eog_tokens()[0]
    ending = SamplingParams(temperature=0, logit_bias=((eos, 1000.0),))
    assert await ids(40, 41, sampling=ending) == [eos]
    # beside log probabilities
    scored = engine.submit(plan(40, 41, tell_tokens=True, top_logprobs=1))
    events = [event async for batch in scored for event in batch]
    assert [id for event in events for id in event.token_ids or ()] == told
    plain = [event async for batch in engine.submit(plan(40, 41)) for event in batch]
    assert all(event.token_ids is None for event in plain)


async def test_no_tokens_are_the_prompt_only_which_is_kept(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama"), ram_bytes=1 << 26), tiny_model("tiny-llama"))
    engine.start()
    prompt = [40 + i % 60 for i in range(200)]
    prefill = engine.submit(plan(*prompt, max_tokens=0))
    assert (await collect(prefill), prefill.completion_tokens) == ([("", "length")], 0)
    await settled(engine)
    after = engine.submit(plan(*prompt, 50, 51))
    await collect(after)
    assert after.cached_tokens >= 190
    await engine.close()


async def test_a_long_prompt_is_announced_with_what_was_cached(tiny_model):
    engine = load_engine(config(tiny_model("tiny-llama"), ram_bytes=1 << 26, n_batch=32), tiny_model("tiny-llama"))
    engine.start()

    async def told(*prompt, **options):
        """The text, the number of tokens and of cached ones each time that something becomes known, and the answer."""
        generation, pushed = engine.submit(plan(*prompt, **options)), []
        push = generation.push
        generation.push = lambda *args: (pushed.append((args[1], args[2], args[4])), push(*args))
        answer = await collect(generation)
        return pushed, answer

    prompt = [40 + i % 60 for i in range(200)]
    pushed, cold = await told(*prompt, announce=True)
    assert pushed[0] == ("", 0, 0)
    assert all(n_tokens for _, n_tokens, _ in pushed[1:])
    await settled(engine)
    pushed, warm = await told(*prompt[:150], *range(100, 200), announce=True)
    text, n_tokens, n_cached = pushed[0]
    assert (text, n_tokens, n_cached > 100) == ("", 0, True)
    assert {cached for _, _, cached in pushed} == {n_cached}
    await settled(engine)
    pushed, plain = await told(*prompt)
    assert all(n_tokens for _, n_tokens, _ in pushed)
    assert plain == cold != warm
    await engine.close()


async def test_a_stop_string_may_stay(engine):
    ((text, _),) = await collect(engine.submit(plan(40, 41, ignore_eos=True)))
    stop = text[2:4]
    for keep_stop in (False, True):
        ((cut, reason),) = await collect(engine.submit(plan(40, 41, stop=(stop,), keep_stop=keep_stop)))
        assert (cut, reason) == (text[: text.index(stop)] + stop * keep_stop, "stop")


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
