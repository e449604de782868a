"""How long requests may stay, and how fast they leave."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.engines import collect, config, plan, settled
from support.standing_clock import stand_still

from engine.test_embeddings import inputs_of
from llamafast.config import ServerConfig
from llamafast.engine import queue_limits as limits_module
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.load import load_engine
from llamafast.engine.queue_limits import QueueLimits
from llamafast.engine.types import ANYBODY, Tenant
from llamafast.errors import AnswerTimeout, EngineUnavailable, QueueFull, QueueTimeout


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(limits_module, "monotonic", clock)
    return clock


class Request:
    """Remembers what it was aborted with; ends then, as the Engine's do."""

    def __init__(self, limits, has_begun=False, tenant=ANYBODY):
        self.limits, self.has_begun, self.tenant = limits, has_begun, tenant
        self.n_waiting = int(not has_begun)
        self.errors = []
        limits.begin(self, self.abort)

    def abort(self, error):
        self.errors.append(error)
        self.limits.end(self)


def leave(limits, request):
    """It ends after it has begun."""
    request.has_begun = True
    limits.end(request)


async def test_without_a_measure_a_second_will_do(clock):
    limits = QueueLimits(ServerConfig())
    assert limits.retry_after(512) == 1
    request = Request(limits)
    clock.now += 5
    leave(limits, request)
    assert limits.retry_after(512) == 1


async def test_half_of_who_waits_has_begun_when_one_should_come_back(clock):
    limits = QueueLimits(ServerConfig())
    requests = [Request(limits) for _ in range(200)]
    for request in requests[:100]:
        clock.now += 0.5
        leave(limits, request)
    assert limits.retry_after(20) == pytest.approx(5)
    assert limits.retry_after(2) == 1
    assert limits.retry_after(0) == 1
    assert limits.retry_after(1000) == 60


async def test_only_the_last_departures_count_and_time_goes_on_without_one(clock):
    limits = QueueLimits(ServerConfig())
    requests = [Request(limits) for _ in range(200)]
    for request in requests[:30]:
        clock.now += 10
        leave(limits, request)
    for request in requests[30:94]:
        clock.now += 0.1
        leave(limits, request)
    assert limits.retry_after(100) == pytest.approx(5)
    clock.now += 6.3
    assert limits.retry_after(100) == pytest.approx(10)


async def test_a_request_leaves_once(clock):
    limits = QueueLimits(ServerConfig())
    first, second, _ = (Request(limits) for _ in range(3))
    leave(limits, first)
    clock.now += 4
    for _ in range(9):
        leave(limits, first)
    leave(limits, second)
    assert limits.retry_after(4) == pytest.approx(8)


async def test_a_server_that_nobody_asks_does_not_get_slower(clock):
    limits = QueueLimits(ServerConfig())
    for _ in range(10):
        request = Request(limits)
        clock.now += 2
        leave(limits, request)
        clock.now += 3600
    assert limits.retry_after(10) == pytest.approx(10)
    Request(limits)
    clock.now += 18
    assert limits.retry_after(10) == pytest.approx(20)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=100), st.integers(0, 10**6))
def test_the_answer_is_never_out_of_bounds(events, n_waiting):
    async def play():
        limits = QueueLimits(ServerConfig())
        there = []
        for seconds, comes in events:
            clock.now += seconds
            if comes:
                there.append(Request(limits))
            elif there:
                leave(limits, there.pop())
            assert 1 <= limits.retry_after(n_waiting) <= 60
            assert limits.empty.is_set() == (not there)

    clock = Clock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limits_module, "monotonic", clock)
        asyncio.run(play())


async def test_timers_are_there_only_where_the_config_has_bounds_and_not_after_the_end(monkeypatch):
    loop = asyncio.get_running_loop()
    timers = []
    call_later = loop.call_later

    def watched(*args):
        timers.append(call_later(*args))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", watched)
    limits = QueueLimits(ServerConfig())
    limits.end(Request(limits))
    assert timers == []
    limits = QueueLimits(ServerConfig(queue_seconds=1000, request_seconds=2000))
    request = Request(limits)
    assert [timer.cancelled() for timer in timers] == [False, False]
    limits.end(request)
    assert [timer.cancelled() for timer in timers] == [True, True]
    Request(QueueLimits(ServerConfig(queue_seconds=1e300, request_seconds=1e-300)))


async def test_who_waits_or_takes_too_long_is_sent_away(monkeypatch):
    stand_still(monkeypatch)
    limits = QueueLimits(ServerConfig(queue_seconds=0.01, request_seconds=0.03))
    waiting, running, done = Request(limits), Request(limits, has_begun=True), Request(limits)
    limits.end(done)
    async with asyncio.timeout(30):
        await limits.empty.wait()
    ((queued,), (taken,)) = waiting.errors, running.errors
    assert (type(queued), queued.status, queued.code) == (QueueTimeout, 503, "queue_timeout")
    assert (type(taken), taken.status, taken.code, taken.type) == (
        AnswerTimeout,
        504,
        "request_timeout",
        "server_error",
    )
    assert (queued.message, taken.message) == (
        "the request has waited for 0.01 seconds, the longest it may",
        "the request has taken 0.03 seconds, the longest it may",
    )
    assert isinstance(queued, EngineUnavailable)
    assert done.errors == []
    await asyncio.sleep(0.05)
    assert len(waiting.errors) == len(running.errors) == 1


async def test_all_who_are_there_can_be_sent_away():
    limits = QueueLimits(ServerConfig())
    requests = [Request(limits) for _ in range(3)]
    limits.abort_all(EngineUnavailable("closed"))
    assert [error.message for request in requests for error in request.errors] == ["closed"] * 3
    assert limits.empty.is_set()


def bounded(path, *, embedding=False, **server):
    """An engine whose requests may stay so long, for one sequence at a time."""
    settings = config(path, n_ctx=8192, n_seq_max=1, embedding=embedding)
    engine = load_engine(replace(settings, server=ServerConfig(**server)), path)
    engine.start()
    return engine


LONG = {"max_tokens": None, "ignore_eos": True}


async def test_a_request_that_none_has_begun_to_work_on_gives_its_place_up(tiny_model):
    engine = bounded(tiny_model("tiny-llama"), queue_seconds=1.0)
    running = engine.submit(plan(40, n=2, **LONG))
    await anext(running)
    waiting = engine.submit(plan(41, n=2))
    with pytest.raises(QueueTimeout):
        await collect(waiting)
    assert not running.finished
    running.cancel()
    await settled(engine)
    counters = engine.counters()
    assert (counters["waiting"], counters["cancelled"], counters["used_cells"]) == (0, 4, 0)
    # one of its choices has begun: the other may wait
    assert [reason for _, reason in await collect(engine.submit(plan(41, n=2, max_tokens=6000, ignore_eos=True)))] == [
        "length", "length",
    ]  # fmt: skip
    await engine.close()


async def test_a_request_that_takes_too_long_ends_with_what_it_said_so_far(tiny_model):
    engine = bounded(tiny_model("tiny-llama"), request_seconds=1.0)
    generation = engine.submit(plan(40, n=2, **LONG))
    heard = []

    async def listen():
        async for batch in generation:
            heard.extend(event.n_tokens for event in batch)

    with pytest.raises(AnswerTimeout):
        await listen()
    assert 0 < sum(heard) == generation.completion_tokens
    await settled(engine)
    counters = engine.counters()
    assert (counters["cancelled"], counters["used_cells"]) == (2, 0)
    assert (await collect(engine.submit(plan(40))))[0][1] == "length"
    await engine.close()


async def test_embeddings_may_not_stay_longer_either(tiny_model, monkeypatch):
    path = tiny_model("tiny-llama")
    many = EmbeddingPlan(inputs=inputs_of(400) * 2000)
    engine = bounded(path, embedding=True, request_seconds=1.0)
    with pytest.raises(AnswerTimeout):
        await engine.embed(many)
    assert len(await engine.embed(EmbeddingPlan(inputs=inputs_of(3)))) == 1
    assert engine.counters()["embedding_inputs"] < 2000
    await engine.close()
    engine = bounded(path, embedding=True, queue_seconds=1.0)
    with monkeypatch.context() as held:
        held.setattr(engine._embeddings, "_admit", lambda: None)
        with pytest.raises(QueueTimeout):
            await engine.embed(many)
    assert len(await engine.embed(EmbeddingPlan(inputs=inputs_of(3, 400)))) == 2
    await engine.close()


async def test_the_engine_tells_when_to_come_back(tiny_model, clock):
    engine = bounded(tiny_model("tiny-llama"))
    for _ in range(3):
        generation = engine.submit(plan(41))
        clock.now += 12
        await collect(generation)
    running = engine.submit(plan(40, **LONG))
    await anext(running)
    waiting = [engine.submit(plan(42)) for _ in range(4)]
    async with asyncio.timeout(30):
        while engine.counters()["waiting"] != 4:
            await asyncio.sleep(0.001)
    assert engine.retry_after() == pytest.approx(24)
    for generation in (running, *waiting):
        generation.cancel()
    await engine.close()


async def test_who_queues_with_whom(clock):
    """Those who wait, not those who run; tenants with a bound each by themselves."""
    limits = QueueLimits(ServerConfig())
    bounded = Tenant(name="bounded", max_running=2)
    for tenant, n_running, n_waiting in ((bounded, 2, 5), (Tenant(name="other", max_running=1), 1, 3), (ANYBODY, 9, 4)):
        for k in range(n_running + n_waiting):
            Request(limits, has_begun=k < n_running, tenant=tenant)
    assert limits.waiting(ANYBODY) == limits.waiting(Tenant(name="named")) == (4, 4)
    assert limits.waiting(bounded) == (5, 5)
    assert limits.waiting(Tenant(name="new", max_running=1)) == (0, 0)


async def test_who_leaves_the_queue_is_no_progress(clock):
    limits = QueueLimits(ServerConfig())
    for k in range(100):
        request = Request(limits, has_begun=k % 10 == 0)
        clock.now += 1
        limits.end(request)
    assert limits.retry_after(4) == pytest.approx(20, rel=0.2)


async def test_a_tenant_with_a_bound_fills_its_own_queue_and_nobody_elses(tiny_model):
    """It would otherwise shut everybody out by requests that wait for nothing but its own."""
    path = tiny_model("tiny-llama")
    engine = load_engine(config(path, max_queue=3, n_ctx=8192), path)
    engine.start()
    bounded = Tenant(name="bounded", max_running=1)
    long = {"max_tokens": 7000, "ignore_eos": True}
    many = [engine.submit(plan(40, **long), bounded)]
    await anext(many[0])
    many += [engine.submit(plan(41 + k, **long), bounded) for k in range(3)]
    with pytest.raises(QueueFull, match="3 requests wait"):
        engine.submit(plan(50), bounded)
    with pytest.raises(QueueFull):
        engine.submit(plan(50, n=12), bounded)
    for tenant in (ANYBODY, Tenant(name="other", max_running=1)):
        assert len(await collect(engine.submit(plan(50), tenant))) == 1
        assert len(await collect(engine.submit(plan(51, n=3), tenant))) == 3
    for generation in many:
        generation.cancel()
    await settled(engine)
    assert len(await collect(engine.submit(plan(50), bounded))) == 1
    await engine.close()
