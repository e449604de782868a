"""What separates tenants, over a real tiny model."""

from __future__ import annotations

import asyncio
import random
from array import array

import numpy as np
import pytest
from support.engines import collect, config, plan, settled

from engine.test_embeddings import engine_of, floats, inputs_of
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.load import load_engine
from llamafast.engine.types import ANYBODY, Tenant

ALICE, BOB = Tenant("alice", salt="alice"), Tenant("bob", salt="bob")
PROMPT = array("i", random.Random(7).choices(range(512), k=200))


@pytest.fixture
async def engine(tiny_model):
    path = tiny_model("tiny-llama")
    engine = load_engine(config(path, n_ctx=16384, ram_bytes=1 << 26), path)
    engine.start()
    yield engine
    await engine.close()


async def cached(engine, tenant, **options) -> int:
    """How much of PROMPT a tenant gets from somebody else's request."""
    generation = engine.submit(plan(*PROMPT, **{"max_tokens": 2} | options), tenant)
    await collect(generation)
    return generation.cached_tokens


async def test_nobody_shares_the_prefix_of_another_tenant_that_runs(engine):
    running = engine.submit(plan(*PROMPT, max_tokens=7000, ignore_eos=True), ALICE)
    await anext(running)
    assert await cached(engine, BOB) == await cached(engine, ANYBODY) == 0
    assert await cached(engine, ALICE, cache_salt="mine") == 0
    assert await cached(engine, ALICE) == 199
    assert not running.finished
    running.cancel()
    await settled(engine)


async def test_nobody_is_given_the_saved_prefix_of_another_tenant(engine):
    for tenant, options in [
        (ALICE, {}), (BOB, {}), (ANYBODY, {}), (ANYBODY, {"cache_salt": "alice"}), (ALICE, {"cache_salt": "alice"}),
    ]:  # fmt: skip
        assert await cached(engine, tenant, **options) == 0
        await settled(engine)
        assert await cached(engine, tenant, **options) == 199
        await settled(engine)


async def test_tenants_of_one_salt_share(engine):
    assert await cached(engine, Tenant("alice")) == 0
    await settled(engine)
    assert await cached(engine, Tenant("bob", priority=3, max_running=1)) == 199


async def test_at_most_so_many_sequences_of_a_tenant_run_and_others_go_on(engine):
    bounded = Tenant("alice", max_running=2)
    long = {"max_tokens": 7000, "ignore_eos": True}
    generations = [engine.submit(plan(40, n=3, **long), bounded), engine.submit(plan(41, **long), bounded)]
    await anext(generations[0])
    for _ in range(3):
        assert (await collect(engine.submit(plan(50))))[0][1] == "length"
        while engine.counters()["running"] > 2:
            await asyncio.sleep(0.001)  # the engine thread tidies up after the one that has finished
        counters = engine.counters()
        assert (counters["waiting"], counters["preempted"]) == (2, 0)
    for generation in generations:
        generation.cancel()
    await settled(engine)


async def test_a_tenants_priority_counts_where_requests_may_not_have_one(tiny_model):
    path = tiny_model("tiny-llama")
    settings = config(path, n_ctx=8192, n_seq_max=1)
    engine = load_engine(settings, path)
    engine.start()
    running = engine.submit(plan(40, max_tokens=7000, ignore_eos=True))
    await anext(running)
    done = []

    async def finish(name, generation):
        await collect(generation)
        done.append(name)

    low, high = (engine.submit(plan(41), Tenant(priority=priority)) for priority in (1, -1))
    normal = engine.submit(plan(41))
    tasks = [
        asyncio.create_task(finish(name, generation))
        for name, generation in (("low", low), ("high", high), ("normal", normal))
    ]
    while engine.counters()["waiting"] < 3:
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(*tasks)
    assert done == ["high", "normal", "low"]
    await engine.close()


async def test_a_tenants_bound_changes_no_vector(tiny_encoder):
    engine = engine_of(tiny_encoder("tiny-bert"))
    wanted = EmbeddingPlan(inputs=inputs_of(*[9] * 20))
    alone = await engine.embed(wanted)
    bounded = Tenant("alice", max_running=3)
    together = await asyncio.gather(engine.embed(wanted, bounded), engine.embed(wanted), engine.embed(wanted, bounded))
    for vectors in together:
        for vector, expected in zip(vectors, alone, strict=True):
            np.testing.assert_allclose(floats(vector), floats(expected), atol=1e-3)
    await engine.close()
