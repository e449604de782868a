"""Drafts behind the engine's door: texts are those of an engine that drafts nothing, in every kind of memory."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from core.inside import draft_by, drafter_of, set_times
from support.engines import GREEDY, collect, config, loaded, plan, settled

from engine.test_memory_kinds import TEXTS, answer, start
from llamafast._core import nextn
from llamafast._core.vocab import Vocab
from llamafast.config import ModelConfig
from llamafast.engine.drafting import create_drafter, draft_params, most_drafted
from llamafast.engine.load import create_contexts, load_engine
from llamafast.engine.types import SamplingParams
from llamafast.errors import ConfigError

LOOKUP = {"draft_model": "prompt-lookup-decoding"}
# who cannot take rows back
UNABLE = ("recurrent",)
FREE = [1.0] * 64


def drafting(tiny_model, kind, ram_bytes, **settings):
    """An engine for which drafted rows cost nothing, so all of them are decoded."""
    engine = start(tiny_model, kind, ram_bytes, **LOOKUP | settings)
    set_times(drafter_of(engine._worker.runner), FREE)
    return engine


def say_again(text, n=3):
    """What a model of random weights makes of it is not said again, but its prompt is."""
    return [*text[:60]] * n


@pytest.mark.parametrize("kind", ["unified", "partitioned", "window", "hybrid", "recurrent"])
async def test_a_conversation_with_drafts_is_the_one_without(tiny_model, kind):
    """Prefixes that others have saved, lent and restored; answers that were given before."""
    drafts, plain = drafting(tiny_model, kind, 10**8), start(tiny_model, kind, 0, draft_model="none")
    seeded = SamplingParams(temperature=1.0, seed=4, repetition_penalty=1.1)
    history = [*say_again(TEXTS[0]), *TEXTS[0][:40]]
    for turn in range(2):
        for sampling in (GREEDY, seeded):
            options = {"sampling": sampling}
            expected, _ = await answer(plain, history, 40, **options)
            first = await asyncio.gather(*(answer(drafts, history, 40, **options) for _ in range(3)))
            await settled(drafts)
            again, cached = await answer(drafts, history, 40, **options)
            assert [text for text, _ in first] == [expected] * 3
            assert again == expected
            assert cached > 0
        said = plain.tokenizer.tokenize(expected[0], add_special=False, parse_special=False)
        history = [*history, *said, *TEXTS[1][turn * 40 : turn * 40 + 50]]
    counters = drafts.counters()
    assert (counters["draft_tokens_accepted"] > 50) == (kind not in UNABLE)
    assert counters["draft_answers_accepted"] > 0 or kind in UNABLE
    assert "draft_calls" not in plain.counters()
    for engine in (drafts, plain):
        await engine.close()


async def test_answers_that_end_behind_a_draft_that_was_taken_back_are_kept_in_parts(tiny_model):
    """A state that cannot be cut is kept from where the last one ends, and not from the beginning: over the turns of a
    conversation that is as many bytes as without drafts, and not their square."""
    engines = drafting(tiny_model, "hybrid", 10**8), start(tiny_model, "hybrid", 10**8, draft_model="none")

    def wrong(tag, tokens, most):
        return [40 + len(tokens) % 9] * most

    draft_by(drafter_of(engines[0]._worker.runner), wrong)
    history, kept = TEXTS[0][:200], []
    for turn in range(6):
        told = [await answer(engine, history, 24) for engine in engines]
        for engine in engines:
            await settled(engine)
        assert told[0] == told[1]
        kept.append([engine.counters()["cache_bytes"] for engine in engines])
        said = engines[0].tokenizer.tokenize(told[0][0][0], add_special=False, parse_special=False)
        history = [*history, *said, *TEXTS[1][turn * 40 : turn * 40 + 60]]
    assert engines[0].counters()["draft_tokens_verified"] > engines[0].counters()["draft_tokens_accepted"]
    assert [drafts for drafts, _ in kept] == [plain for _, plain in kept]
    grown = [after[0] - before[0] for before, after in pairwise(kept)]
    assert max(grown) < 1.5 * min(grown)
    for engine in engines:
        await engine.close()


async def test_what_nobody_else_may_have_is_kept_for_nobody(tiny_model):
    """Neither to be drafted from nor among the prefixes; the choices of a request have it among themselves."""
    engine = drafting(tiny_model, "unified", 10**8)
    prompt, alone = TEXTS[0][:150], {"cache_prompt": False}
    for options, n_states in ((alone, 0), (alone, 0), ({}, 1), (alone, 1)):
        _, cached = await answer(engine, prompt, 60, **options)
        await settled(engine)
        assert (cached, engine.counters()["cache_states"]) == (0, n_states)
    assert engine.counters()["draft_answers_accepted"] == 0
    await collect(engine.submit(plan(*prompt, n=3, max_tokens=4, **alone)))
    assert engine.counters()["prefix_hits_running"] >= 2 * (len(prompt) - 1)
    await answer(engine, prompt, 60)
    assert engine.counters()["draft_answers_accepted"] > 0
    await engine.close()


@pytest.mark.parametrize("kind", ["unified", "hybrid"])
async def test_drafts_in_a_memory_that_is_too_small_cost_nobody_its_answer(tiny_model, kind):
    drafts, plain = drafting(tiny_model, kind, 200_000, n_ctx=640, n_seq_max=4), start(tiny_model, kind, 0)
    prompts = [[*TEXTS[k % 3][: 100 + 10 * k], *TEXTS[k % 3][:50]] for k in range(6)]
    expected = [(await answer(plain, prompt, 60))[0] for prompt in prompts]
    for _ in range(2):
        told = await asyncio.gather(*(answer(drafts, prompt, 60) for prompt in prompts))
        assert [text for text, _ in told] == expected
    await settled(drafts)
    assert drafts.counters()["draft_tokens_accepted"] > 0
    assert drafts.counters()["used_cells"] == 0
    for engine in (drafts, plain):
        await engine.close()


async def test_a_request_may_do_without_and_send_what_it_expects(tiny_model):
    engine = start(tiny_model, "unified", 0)
    set_times(drafter_of(engine._worker.runner), FREE)
    prompt = TEXTS[0][:50]
    options = {"max_tokens": 60, "ignore_eos": True}
    generation = engine.submit(plan(*prompt, **options))
    (expected,) = await collect(generation)
    assert generation.predicted_tokens is None
    assert engine.counters()["draft_tokens_verified"] == 0  # the config says nothing
    options["prediction"] = generation.sequences[0].tokens()[50:]
    generation = engine.submit(plan(*prompt, speculative=False, **options))
    assert await collect(generation) == [expected]
    assert engine.counters()["draft_tokens_verified"] == generation.predicted_tokens[0] == 0
    generation = engine.submit(plan(*prompt, **options))
    assert await collect(generation) == [expected]
    accepted, rejected = generation.predicted_tokens
    assert accepted + rejected == 60 > accepted > 50
    counters = engine.counters()
    assert counters["draft_prediction_accepted"] == counters["draft_tokens_accepted"] > 0
    assert sum(counters[f"draft_length_{n}"] * n for n in range(65)) == counters["draft_tokens_accepted"]
    await engine.close()


async def test_what_one_tenant_was_answered_is_not_drafted_for_another(tiny_model):
    engine = drafting(tiny_model, "unified", 0)
    for salt, accepts in (("a", False), ("a", True), ("b", False), ("b", True)):
        before = engine.counters()["draft_answers_accepted"]
        await answer(engine, TEXTS[0][:50], 60, cache_salt=salt)
        await settled(engine)
        assert (engine.counters()["draft_answers_accepted"] > before) == accepts
    await engine.reset_prefix_cache()
    before = engine.counters()["draft_answers_verified"]
    await answer(engine, TEXTS[0][:50], 60, cache_salt="a")
    assert engine.counters()["draft_answers_verified"] == before
    await engine.close()


async def test_what_was_drafted_is_told_of_the_request_and_of_its_steps(tiny_model):
    engine = drafting(tiny_model, "unified", 10**8)
    for _ in range(2):  # what was answered once is drafted the next time
        generation = engine.submit(plan(*say_again(TEXTS[0]), *TEXTS[0][:40], max_tokens=30, ignore_eos=True))
        await collect(generation)
        await settled(engine)
    counters, activity = engine.counters(), engine.activity()
    told = counters["draft_tokens_verified"], counters["draft_tokens_accepted"]
    assert generation.drafted_tokens == told
    assert told[0] > 0
    assert sum(part.n_drafted for step in activity.steps for part in step.parts) == told[0]
    await engine.close()


def test_what_the_config_means():
    def model(**settings):
        return ModelConfig(path="m.gguf", **settings)

    assert [most_drafted(model(draft_model=value)) for value in (None, "none", (), "prompt-lookup-decoding")] == [
        16, 0, 0, 16,
    ]  # fmt: skip
    for n, most in ((0, 0), (-1, -1), (7, 7), (1000, 64)):
        assert most_drafted(model(draft_model_num_pred_tokens=n)) == most


def test_states_to_go_back_to_are_kept_only_where_they_are_needed(tiny_model, caplog):

    caplog.set_level("INFO")
    for name, n_undo in (("tiny-llama", 2**31 - 1), ("tiny-qwen35", 8), ("tiny-mamba", 0)):
        wanted = ModelConfig(path="m", n_ctx=256, threads=1, **LOOKUP)
        model = loaded(wanted, tiny_model(name))
        assert draft_params(wanted, model) == ({} if name == "tiny-llama" else {"n_rs_seq": 8})
        assert draft_params(ModelConfig(path="m"), model) == {}
        context, _ = create_contexts(wanted, model)
        assert context.n_undo == n_undo
        assert create_drafter(wanted, context, Vocab(model)) is not None
    assert "drafts   none: this memory does not forget single tokens" in caplog.text


@pytest.mark.parametrize("ram_bytes", [0, 10**8])
async def test_a_head_drafts_in_what_others_computed_and_saved(tiny_model, ram_bytes):
    """Reused and restored prefixes, room for a few at once, and the text of the undrafted."""
    name = tiny_model("tiny-qwen35-mtp-chain70")
    settings = {"n_ctx": 1024, "n_seq_max": 4, "ram_bytes": ram_bytes, "draft_model_num_pred_tokens": 4}
    drafts = load_engine(config(name, draft_model="draft-mtp", **settings), name)
    plain = load_engine(config(name, draft_model="none", **settings), name)
    set_times(drafter_of(drafts._worker.runner), FREE)
    for engine in (drafts, plain):
        engine.start()
    prompts = [[*TEXTS[k % 3][:100], 40 + 23 * k] for k in range(6)]
    for _ in range(2):
        expected, told = [
            [text for text, _ in await asyncio.gather(*(answer(engine, prompt, 60) for prompt in prompts))]
            for engine in (plain, drafts)
        ]
        assert told == expected
        await settled(drafts)
    counters = drafts.counters()
    assert counters["draft_head_accepted"] > 0.3 * counters["generated_tokens"]
    first = sum(counters[f"draft_length_{n}"] for n in range(1, 5)) / counters["draft_batches_verified"]
    assert first > 0.55
    assert (counters["prefix_hits_ram"] > 0) == bool(ram_bytes)
    for engine in (drafts, plain):
        await engine.close()


def test_a_model_without_a_head_is_told_at_start(tiny_model, monkeypatch, caplog):
    path = tiny_model("tiny-qwen35")
    with pytest.raises(ConfigError, match="draft-mtp: the GGUF has no layer that drafts"):
        load_engine(config(path, draft_model="draft-mtp"), path)
    monkeypatch.setattr(nextn, "available", lambda: False)
    path = tiny_model("tiny-qwen35-mtp")
    load_engine(config(path, draft_model=("draft-mtp", "prompt-lookup-decoding")), path)
    assert "this llama.cpp lacks what they need" in caplog.text


async def test_a_head_may_come_in_a_file_of_its_own(tiny_model):
    path, separate = tiny_model("tiny-qwen35-mtp-chain"), tiny_model("tiny-qwen35-mtp-chain70")
    engine = load_engine(config(path, draft_model="draft-mtp"), path, draft=separate)
    set_times(drafter_of(engine._worker.runner), FREE)
    engine.start()
    await answer(engine, [40, 50, 60], 100)
    counters = engine.counters()
    assert 0.15 < counters["draft_tokens_accepted"] / counters["draft_tokens_verified"] < 0.95
    await engine.close()
    other = tiny_model("tiny-llama")
    with pytest.raises(ConfigError, match="no layer that drafts"):
        load_engine(config(path, draft_model="draft-mtp"), path, draft=other)
