"""Embedding requests: turns, failures, cancelling; and the whole engine over tiny models."""

from __future__ import annotations

import asyncio
import random
from array import array
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafast._core.step import NO_OUTPUT
from llamafast.config import CacheConfig, Config, ModelConfig, ServerConfig
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.embeddings import EmbeddingQueue, EmbeddingRequest
from llamafast.engine.load import load_engine
from llamafast.engine.types import ANYBODY, Plan, SamplingParams, Tenant
from llamafast.errors import (
    ContextLengthExceeded,
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    ModelLoadError,
    QueueFull,
)


@dataclass(eq=False)
class FakeInput:
    name: str
    n_tokens: int = 1
    vectors: bytes | None = b"vector"
    group: int = 0


@dataclass
class FakeEmbedder:
    """Takes ``room`` tokens and finishes everything in one step, unless a code says otherwise."""

    room: int = 4
    codes: list = field(default_factory=list)
    running: list = field(default_factory=list)
    steps: list = field(default_factory=list)

    def fits(self, input):
        return sum(other.n_tokens for other in self.running) + input.n_tokens <= self.room

    def add(self, input):
        assert self.fits(input)
        self.running.append(input)

    def remove(self, input):
        self.running.remove(input)

    def clear(self):
        self.running.clear()

    def step(self, seconds):
        self.steps.append([input.name for input in self.running])
        return self.codes.pop(0) if self.codes else 0

    def take_finished(self):
        finished, self.running = self.running, []
        return finished


class Answer:
    """A future that needs no event loop."""

    def __init__(self):
        self.result = None

    def done(self):
        return self.result is not None

    def set_result(self, value):
        self.result = "done"

    def set_exception(self, error):
        self.result = error


def request_of(name: str, n_inputs: int, n_tokens: int = 1, tenant: Tenant = ANYBODY) -> EmbeddingRequest:
    return EmbeddingRequest([FakeInput(f"{name}{i}", n_tokens) for i in range(n_inputs)], Answer(), tenant)


def queue_of(embedder: FakeEmbedder) -> EmbeddingQueue:
    return EmbeddingQueue(embedder, lambda settled: [request.settle(error) for request, error in settled])


def test_each_request_gives_one_input_in_turn():
    queue = queue_of(FakeEmbedder())
    requests = [request_of("a", 5), request_of("b", 1), request_of("c", 2)]
    for request in requests:
        queue.enqueue(request)
    assert queue.n_waiting == 3
    while queue.has_work:
        queue.step(1.0)
    assert queue.embedder.steps == [["a0", "b0", "c0", "a1"], ["c1", "a2", "a3", "a4"]]
    assert [request.done.result for request in requests] == ["done"] * 3
    assert queue.n_waiting == 0


def test_a_tenants_inputs_wait_for_its_bound_in_their_turn():
    queue = queue_of(FakeEmbedder())
    alice = Tenant("alice", max_running=1)
    for request in [request_of("a", 3, tenant=alice), request_of("b", 1, tenant=alice), request_of("c", 6)]:
        queue.enqueue(request)
    while queue.has_work:
        queue.step(1.0)
    assert queue.embedder.steps == [["a0", "c0", "c1", "c2"], ["b0", "c3", "c4", "c5"], ["a1"], ["a2"]]
    assert queue.n_waiting == 0


def test_a_failed_step_fails_who_was_in_it_and_nobody_else():
    queue = queue_of(FakeEmbedder(room=2, codes=[-3]))
    requests = [request_of("a", 2), request_of("b", 1), request_of("c", 1)]
    for request in requests:
        queue.enqueue(request)
    while queue.has_work:
        queue.step(1.0)
    assert [type(request.done.result) for request in requests] == [EngineFailure, EngineFailure, str]
    assert requests[0].done.result.message == "llama_decode failed with code -3"


def test_a_vector_that_is_not_there_is_told_as_that():
    queue = queue_of(FakeEmbedder(codes=[NO_OUTPUT]))
    request = request_of("a", 1)
    queue.enqueue(request)
    queue.step(1.0)
    assert request.done.result.message == "llama.cpp computed a row and gave nothing of it"


def test_a_vector_that_is_not_finite_fails_its_request_only():
    queue = queue_of(FakeEmbedder())
    bad, good = request_of("a", 3), request_of("b", 2)
    bad.inputs[0].vectors = None
    queue.enqueue(bad)
    queue.enqueue(good)
    while queue.has_work:
        queue.step(1.0)
    assert isinstance(bad.done.result, EngineFailure)
    assert good.done.result == "done"


def test_groups_of_adapters_run_beside_so_many_others_and_are_passed_once():
    def asked(name, n_inputs, group):
        request = request_of(name, n_inputs)
        for input in request.inputs:
            input.group = group
        return request

    queue = EmbeddingQueue(FakeEmbedder(room=3), lambda settled: None, max_groups=1)
    for request in [asked("a", 4, 0), asked("b", 2, 1), asked("c", 1, 0)]:
        queue.enqueue(request)
    while queue.has_work:
        queue.step(1.0)
    assert queue.embedder.steps == [["a0", "c0", "a1"], ["b0", "b1"], ["a2", "a3"]]
    # what runs on for many steps does not let its own group go on for ever
    queue = EmbeddingQueue(FakeEmbedder(room=9), lambda settled: None, max_groups=2)
    stays = asked("stays", 1, 0)
    queue.embedder.take_finished = list
    for request in [stays, asked("x", 1, 1), asked("waits", 1, 2), asked("y", 1, 1)]:
        queue.enqueue(request)
    queue.step(1.0)
    queue.enqueue(asked("z", 1, 0))
    queue.step(1.0)
    assert queue.embedder.steps == [["stays0", "x0", "y0"]] * 2


TENANTS = [ANYBODY, Tenant("alice", max_running=1), Tenant("bob", max_running=3)]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5), st.sampled_from(TENANTS)), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
    st.lists(st.sampled_from([0, 0, 0, 2, -1]), max_size=6),
)
def test_every_request_is_settled_once_whatever_happens(shapes, cancelled, codes):
    embedder = FakeEmbedder(room=5, codes=list(codes))
    settled: list[EmbeddingRequest] = []
    queue = EmbeddingQueue(embedder, lambda batch: settled.extend(request for request, _ in batch))
    requests = [request_of(f"{i}.", *shape) for i, shape in enumerate(shapes)]
    for request in requests:
        queue.enqueue(request)
    queue.step(1.0)
    for i in cancelled & set(range(len(requests))):
        requests[i].closed = True
    for _ in range(200):
        if not queue.has_work:
            break
        queue.step(1.0)
    owners = {input.name: request.tenant for request in requests for input in request.inputs}
    for tenant in TENANTS[1:]:
        assert all(sum(owners[name] is tenant for name in step) <= tenant.max_running for step in embedder.steps)
    assert not queue.has_work
    assert not embedder.running
    assert queue.n_waiting == 0
    assert len(settled) == len(set(settled))
    assert {id(r) for r in requests} - {id(r) for r in settled} <= {
        id(requests[i]) for i in cancelled if i < len(requests)
    }


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
    tasks = [asyncio.create_task(engine.embed(EmbeddingPlan(inputs=inputs_of(50, *[100] * 200)))) for _ in range(4)]
    await asyncio.sleep(0.01)
    for task in tasks[:3]:
        task.cancel()
    (vector, *_) = await tasks[3]
    np.testing.assert_allclose(floats(vector), floats(expected), atol=1e-3)
    assert engine.counters()["embedding_inputs"] < 500
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
