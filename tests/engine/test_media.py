"""Rows of media in real engines, from an encoder that takes its time."""

from __future__ import annotations

import asyncio
from array import array
from contextlib import asynccontextmanager

import pytest
from support.engines import GREEDY, collect, config, settled
from support.fake_encoder import FakeEncoder, fake_medium

from engine.test_memory_kinds import TEXTS
from llamafast.chat.prompt.media import row_ids
from llamafast.engine.load import load_engine
from llamafast.engine.media import MediaRows, MediaSpan
from llamafast.engine.types import Plan, Tenant
from llamafast.errors import ConfigError, EngineFailure, InvalidMedia

# name: the model, its settings, and what its pictures are like
KINDS = {
    "attention": ("tiny-qwen3vl", {}, {"grid": (5, 4)}),
    "attention, partitioned": ("tiny-qwen3vl", {"kv_unified": False}, {"grid": (5, 4)}),
    "hybrid": ("tiny-qwen35", {}, {"grid": (5, 4)}),
    "one behind the other": ("tiny-llama", {}, {"grid": None, "n_rows": 70}),
    "not causal": ("tiny-llama", {}, {"grid": None, "n_rows": 70, "causal": False}),
    "window": ("tiny-gemma3-swa", {}, {"grid": None, "n_rows": 20, "causal": False}),
}


@asynccontextmanager
async def media_engine(tiny_model, kind, *, seconds=0.0, ram_bytes=10**8, **settings):
    name, options, _ = KINDS[kind]
    path = tiny_model(name)
    encoder = FakeEncoder(seconds, widest_span=70)
    engine = load_engine(
        config(path, **{"n_ctx": 8192, "ram_bytes": ram_bytes} | options | settings), path, encoder=encoder
    )
    engine.start()
    try:
        yield engine, encoder
    finally:
        await engine.close()


def picture(kind, seed):
    return fake_medium(seed, **KINDS[kind][2])


def media_plan(*parts, **options):
    """Of lists of tokens and media."""
    tokens, spans = array("i"), []
    for part in parts:
        if isinstance(part, list):
            tokens.extend(part)
            continue
        for j, chunk in enumerate(part.chunks):
            if isinstance(chunk, MediaRows):
                spans.append(MediaSpan(len(tokens), part, j))
                tokens += row_ids(part.digest, j, chunk.n_rows)
            else:
                tokens += chunk
    options = {"sampling": GREEDY, "ignore_eos": True, "max_tokens": 8} | options
    return Plan(prompts=(tokens,), media=tuple(spans), **options)


async def answer(engine, plan, tenant=None):
    generation = engine.submit(plan) if tenant is None else engine.submit(plan, tenant)
    (text,) = await collect(generation)
    return text[0], generation.cached_tokens


@pytest.mark.parametrize("kind", KINDS)
async def test_a_conversation_with_pictures_computes_only_what_is_new(tiny_model, kind):
    first, second = picture(kind, 1), picture(kind, 2)
    one = [TEXTS[0][:100], first, TEXTS[1][:30]]
    two = [*one, TEXTS[2][:60], second, TEXTS[1][:20]]
    async with media_engine(tiny_model, kind, ram_bytes=0) as (alone, _):
        truths = [(await answer(alone, media_plan(*parts)))[0] for parts in (one, two)]
        other = media_plan(TEXTS[0][:100], picture(kind, 3), TEXTS[1][:30])
        assert (await answer(alone, other))[0] != truths[0]
    async with media_engine(tiny_model, kind, seconds=0.01) as (engine, encoder):
        for _ in range(2):
            for parts, truth in zip((one, two), truths, strict=True):
                text, cached = await answer(engine, media_plan(*parts, checkpoints=(100 + len(first_tokens(first)),)))
                assert text == truth
                await settled(engine)
        # all of the second turn but its last tokens was there
        assert cached >= sum(len(part) for part in one if isinstance(part, list)) + len(first_tokens(first))
        assert max(encoder.n_asked.values()) == 1
        assert all(encoding.left for encoding in encoder.encodings)


def first_tokens(medium):
    return media_plan([1], medium, [1]).prompts[0][1:-1]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_burst_with_one_picture_computes_it_once(tiny_model, kind):
    shown = picture(kind, 1)
    plans = [media_plan(TEXTS[0][:50], shown, TEXTS[1][k : k + 20]) for k in range(4)]
    async with media_engine(tiny_model, kind, ram_bytes=0) as (alone, _):
        truths = [(await answer(alone, plan))[0] for plan in plans]
    async with media_engine(tiny_model, kind, seconds=0.05) as (engine, encoder):
        together = await asyncio.gather(*(answer(engine, plan) for plan in plans))
        assert [text for text, _ in together] == truths
        await settled(engine)
        if engine.counters()["free_sequences"] > 1:
            assert engine.counters()["media_rows"] == shown.chunks[1].n_rows
            assert encoder.n_asked.total() == 1
            assert engine.counters()["prefix_hits"] >= 3 * 50


async def test_streams_go_on_while_a_picture_is_encoded(tiny_model):
    async with media_engine(tiny_model, "attention", seconds=0.001) as (engine, encoder):
        encoder.may_end.clear()
        stream = engine.submit(media_plan(TEXTS[0][:10], max_tokens=100))
        waits = asyncio.create_task(answer(engine, media_plan([50], picture("attention", 1), [51])))
        await collect(stream)
        assert not waits.done()
        while engine.stalled():
            await asyncio.sleep(0.001)
        encoder.may_end.set()
        await waits
        assert engine.counters()["failed"] == 0


async def test_nobody_steps_while_all_wait_for_rows_and_that_is_no_stall(tiny_model):
    async with media_engine(tiny_model, "attention", seconds=0.001) as (engine, encoder):
        encoder.may_end.clear()
        waits = asyncio.create_task(answer(engine, media_plan([50], picture("attention", 1), [51])))
        while not engine._worker._idles:
            await asyncio.sleep(0.001)
        steps = engine.counters()["steps"]
        await asyncio.sleep(0.1)
        assert engine.counters()["steps"] == steps
        assert engine.stalled() == 0
        encoder.may_end.set()
        await waits


@pytest.mark.parametrize("seconds", [0.0, 0.02])
async def test_a_picture_that_cannot_be_encoded_fails_its_request_alone(tiny_model, seconds):
    async with media_engine(tiny_model, "attention", seconds=seconds) as (engine, encoder):
        bad, good = picture("attention", 1), picture("attention", 2)
        encoder.faults[bad.digest] = InvalidMedia("the image is cut off")
        results = await asyncio.gather(
            answer(engine, media_plan([50], bad, [51])),
            answer(engine, media_plan([50], good, [51])),
            answer(engine, media_plan([50, 52], bad, [51])),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [InvalidMedia, tuple, InvalidMedia]
        assert (results[0].message, results[0].param) == ("the image is cut off", "messages[1]")
        await settled(engine)
        encoder.faults[bad.digest] = EngineFailure("the projector failed on this image")
        with pytest.raises(EngineFailure, match="projector"):
            await answer(engine, media_plan([50], bad, [51]))


async def test_who_leaves_wants_no_rows_any_more(tiny_model):
    async with media_engine(tiny_model, "attention", seconds=5) as (engine, encoder):
        generation = engine.submit(media_plan([50], picture("attention", 1), [51]))
        async with asyncio.timeout(30):
            while not encoder.encodings:
                await asyncio.sleep(0.001)
            generation.cancel()
            await settled(engine)
            await answer(engine, media_plan([50]))
        assert encoder.encodings[0].left


async def test_who_gives_way_computes_its_media_again(tiny_model):
    """Room for little more than one of them."""
    shown = [picture("attention", seed) for seed in range(3)]
    plans = [media_plan(TEXTS[seed][:60], shown[seed], [50], max_tokens=200) for seed in range(3)]
    async with media_engine(tiny_model, "attention", ram_bytes=0) as (alone, _):
        truths = [(await answer(alone, plan))[0] for plan in plans]
    async with media_engine(tiny_model, "attention", seconds=0.01, n_ctx=400, ram_bytes=0) as (engine, _):
        together = await asyncio.gather(*(answer(engine, plan) for plan in plans))
        assert [text for text, _ in together] == truths


async def test_tenants_do_not_share_what_was_computed_of_a_picture(tiny_model):
    shown = picture("attention", 1)
    async with media_engine(tiny_model, "attention") as (engine, encoder):
        for salt in ("a", "b", "a"):
            _, cached = await answer(engine, media_plan(TEXTS[0][:50], shown, [50]), Tenant(name=salt, salt=salt))
            await settled(engine)
        assert cached > 50
        assert encoder.n_asked[shown.digest] == 2


async def test_choices_share_a_picture(tiny_model):
    async with media_engine(tiny_model, "attention", seconds=0.02) as (engine, encoder):
        generation = engine.submit(media_plan(TEXTS[0][:50], picture("attention", 1), [50], n=3))
        texts = await collect(generation)
        assert len({text for text, _ in texts}) == 1
        assert encoder.n_asked.total() == 1


def test_a_span_that_is_not_causal_has_room_in_a_step(tiny_model):
    path = tiny_model("tiny-llama")
    encoder = FakeEncoder(widest_span=300)
    engine = load_engine(config(path, n_ctx=512, n_batch=64, n_ubatch=32), path, encoder=encoder)
    context = engine._worker.runner
    assert context.total_cells == 512
    with pytest.raises(ConfigError, match="300 rows, more than the context's 256"):
        load_engine(config(path, n_ctx=256), path, encoder=encoder)


@pytest.mark.parametrize("kind", ["attention, partitioned", "hybrid"])
async def test_who_cannot_have_what_a_leader_computed_asks_for_rows_after_all(tiny_model, kind):
    """A leader that leaves takes its memory along where that cannot be divided."""
    shown = picture(kind, 1)
    first = media_plan(TEXTS[0][:50], shown, TEXTS[1][:5], max_tokens=1)
    second = media_plan(TEXTS[0][:50], shown, TEXTS[1][:5], [60], max_tokens=20)
    async with media_engine(tiny_model, kind, ram_bytes=0) as (alone, _):
        truth = (await answer(alone, second))[0]
    async with media_engine(tiny_model, kind, seconds=0.05, ram_bytes=0, n_ctx=4096) as (engine, _):
        async with asyncio.timeout(30):
            leader = engine.submit(first)
            follower = asyncio.create_task(answer(engine, second))
            await asyncio.sleep(0.02)
            leader.cancel()
            assert (await follower)[0] == truth
