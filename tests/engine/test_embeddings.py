"""Engines over tiny models that embed: what they serve, refuse and leave others."""

from __future__ import annotations

import asyncio
import random
from array import array

import numpy as np
import pytest

from llamafast.config import CacheConfig, Config, ModelConfig, ServerConfig
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.load import load_engine
from llamafast.engine.types import Plan, SamplingParams
from llamafast.errors import (
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    ModelLoadError,
    QueueFull,
)


def config(path, *, max_queue=512, **model) -> Config:
    settings = {"path": str(path), "n_ctx": 512, "n_seq_max": 8, "threads": 1, "flash_attn": False}
    return Config(
        model=ModelConfig(**settings | model),
        server=ServerConfig(max_queue=max_queue),
        cache=CacheConfig(ram_bytes=1 << 26),
    )


def engine_of(path, **model):
    engine = load_engine(config(path, **model), path)
    engine.start()
    return engine


def inputs_of(*lengths: int) -> tuple[array, ...]:
    draw = random.Random(4)
    return tuple(array("i", draw.choices(range(512), k=length)) for length in lengths)


def floats(vectors: bytes) -> np.ndarray:
    return np.frombuffer(vectors, np.float32)


async def test_what_the_gguf_says_is_what_is_served(tiny_encoder):
    engine = engine_of(tiny_encoder("tiny-bert"))
    info = engine.info
    assert (info.generates, info.max_seq_len) == (False, 128)
    assert (info.embedding.pooling, info.embedding.width, info.embedding.max_tokens) == ("mean", 64, 128)
    vectors = await engine.embed(EmbeddingPlan(inputs=inputs_of(3, 128)))
    assert [np.linalg.norm(floats(vector)) for vector in vectors] == pytest.approx([1, 1])
    with pytest.raises(InvalidRequest, match="does not generate"):
        engine.submit(Plan(prompts=inputs_of(3)))
    with pytest.raises(ContextLengthExceeded, match="129 tokens"):
        await engine.embed(EmbeddingPlan(inputs=inputs_of(129)))
    with pytest.raises(InvalidRequest, match="token id 512"):
        await engine.embed(EmbeddingPlan(inputs=(array("i", [512]),)))
    counters = engine.counters()
    assert (counters["embedding_inputs"], counters["embedding_tokens"]) == (2, 131)
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.embed(EmbeddingPlan(inputs=inputs_of(3)))


@pytest.mark.parametrize(
    ("name", "settings", "pooling"),
    [
        ("tiny-bert-unpooled", {}, "mean"),
        ("tiny-bert", {"pooling_type": 2}, "cls"),
        ("tiny-bert", {"pooling_type": 0}, "none"),
        ("tiny-bert", {"kv_unified": False, "n_batch": 64, "n_ubatch": 32}, "mean"),
        ("tiny-bert-cls", {"embedding": True}, "cls"),
        ("tiny-ranker", {}, "rank"),
        ("tiny-t5", {}, "mean"),
    ],
)
async def test_encoders_and_their_settings(tiny_encoder, name, settings, pooling):
    engine = engine_of(tiny_encoder(name), **settings)
    assert engine.info.embedding.pooling == pooling
    assert not engine.info.generates
    together = await engine.embed(EmbeddingPlan(inputs=inputs_of(5, 9, 32, 7)))
    for tokens, vector in zip(inputs_of(5, 9, 32, 7), together, strict=True):
        (alone,) = await engine.embed(EmbeddingPlan(inputs=(tokens,)))
        np.testing.assert_allclose(floats(vector), floats(alone), atol=1e-2 if pooling == "none" else 1e-3)
    await engine.close()


async def test_a_decoder_only_embeds_where_its_gguf_says_so(tiny_model):
    path = tiny_model("tiny-llama")
    engine = engine_of(path, kv_overrides={"llama.pooling_type": 3})
    assert (engine.info.generates, engine.info.embedding.pooling) == (False, "last")
    (vector,) = await engine.embed(EmbeddingPlan(inputs=inputs_of(500)))
    assert len(floats(vector)) == 64
    await engine.close()


async def test_models_and_configs_that_do_not_fit(tiny_encoder, tiny_model):
    with pytest.raises(ModelLoadError, match="classification head"):
        engine_of(tiny_encoder("tiny-bert"), pooling_type=4)
    for name in ("tiny-bert", "tiny-t5"):
        with pytest.raises(ModelLoadError, match="embedding: false"):
            engine_of(tiny_encoder(name), embedding=False)
    engine = engine_of(tiny_model("tiny-llama"))
    with pytest.raises(InvalidRequest, match='"embedding": true'):
        await engine.embed(EmbeddingPlan(inputs=inputs_of(3)))
    await engine.close()


async def test_the_queue_is_bounded(tiny_encoder):
    engine = engine_of(tiny_encoder("tiny-bert"), max_queue=2)
    plan = EmbeddingPlan(inputs=inputs_of(*[100] * 20))
    waiting = [asyncio.create_task(engine.embed(plan)) for _ in range(4)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} <= {list, QueueFull}
    assert any(isinstance(result, QueueFull) for result in results)
    assert len(await engine.embed(plan)) == 20
    await engine.close()


async def test_cancelling_ends_the_work_and_the_rest_is_right(tiny_encoder):
    engine = engine_of(tiny_encoder("tiny-bert"))
    (expected,) = await engine.embed(EmbeddingPlan(inputs=inputs_of(50)))
    many = EmbeddingPlan(inputs=inputs_of(50, *[100] * 500))
    tasks = [asyncio.create_task(engine.embed(many)) for _ in range(4)]
    while engine.counters()["embedding_inputs"] < 2:
        await asyncio.sleep(0.001)
    for task in tasks[:3]:
        task.cancel()
    (vector, *_) = await tasks[3]
    np.testing.assert_allclose(floats(vector), floats(expected), atol=1e-3)
    assert engine.counters()["embedding_inputs"] < 1500
    await engine.close()


async def test_closing_drains_or_refuses(tiny_encoder):
    engine = engine_of(tiny_encoder("tiny-bert"))
    short = asyncio.create_task(engine.embed(EmbeddingPlan(inputs=inputs_of(50))))
    await asyncio.sleep(0)
    await engine.close(10)
    assert len(await short) == 1
    engine = engine_of(tiny_encoder("tiny-bert"))
    long = asyncio.create_task(engine.embed(EmbeddingPlan(inputs=inputs_of(*[128] * 2000))))
    await asyncio.sleep(0)
    await engine.close(0)
    with pytest.raises(EngineUnavailable):
        await long


async def test_generation_keeps_its_prefix_cache_beside_embeddings(tiny_model):
    engine = engine_of(tiny_model("tiny-llama"), embedding=True, n_ctx=2048)
    assert (engine.info.generates, engine.info.embedding.pooling) == (True, "last")
    solo = await engine.embed(EmbeddingPlan(inputs=inputs_of(40, 300, 7)))
    prompt = inputs_of(200)

    async def generate(max_tokens):
        generation = engine.submit(
            Plan(prompts=prompt, sampling=SamplingParams(temperature=0), max_tokens=max_tokens, ignore_eos=True)
        )
        text = "".join([event.text async for batch in generation for event in batch])
        return text, generation.cached_tokens

    alone, cached = await generate(200)
    assert cached == 0
    n_vectors = 0
    busy = True

    async def embed():
        nonlocal n_vectors
        while busy:
            vectors = await engine.embed(EmbeddingPlan(inputs=inputs_of(40, 300, 7)))
            for vector, expected in zip(vectors, solo, strict=True):
                np.testing.assert_allclose(floats(vector), floats(expected), atol=2e-3)
            n_vectors += len(vectors)

    embedding = asyncio.create_task(embed())
    rounds = 0
    while rounds < 3 or n_vectors < 6:
        text, cached = await generate(200)
        assert text == alone
        assert cached >= 199
        rounds += 1
        assert rounds < 100, "embeddings make no progress beside generation"
    busy = False
    await embedding
    await engine.close()
