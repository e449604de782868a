"""Models that come and go, with children that are fakes and a clock that stands still: what others suffer from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support.fake_child import FakeChild, Pool

from llamafast.errors import (
    EngineUnavailable,
    ModelFailed,
    ModelNotLoaded,
    ModelTooLarge,
    QueueFull,
    QueueTimeout,
)
from llamafast.pool.budget import PATIENCE_SECONDS

MakePool = Callable[..., Pool]


@pytest.fixture
async def make() -> AsyncIterator[MakePool]:
    pools: list[Pool] = []

    def made(*arguments: Any, **options: Any) -> Pool:
        pools.append(Pool(*arguments, **options))
        return pools[-1]

    yield made
    for pool in pools:
        await pool.close()


async def test_twenty_first_requests_start_one_child(make: MakePool) -> None:
    """LM Studio #1751: several copies on simultaneous first requests."""
    pool = make({"a": 5}, 10)
    tasks = [asyncio.create_task(pool.fleet.enter(pool["a"])) for _ in range(20)]
    doors = await asyncio.gather(*tasks)
    assert len(pool.children["a"]) == 1
    assert {id(door) for door in doors} == {id(pool.children["a"][0].door)}
    assert pool["a"].busy == 20


async def test_a_model_is_not_evicted_between_its_load_and_the_request_that_caused_it(make: MakePool) -> None:
    """llama.cpp#28698."""
    pool = make({"a": 6, "b": 6}, 10)
    holding: list[FakeChild] = []

    def hold(child: FakeChild) -> None:
        child.may_load.clear()
        holding.append(child)

    pool.prepare["a"] = hold
    first, second = await pool.ask("a"), await pool.ask("b")
    holding[0].may_load.set()
    await pool.settle()
    assert first.done()
    assert not second.done()
    assert pool.loaded_names == {"a"}
    pool.fleet.leave(pool["a"])
    await pool.settle()
    assert second.done()
    assert pool.loaded_names == {"b"}


async def test_who_is_busy_is_never_evicted(make: MakePool) -> None:
    """LM Studio #671, #1796."""
    pool = make({"a": 6, "b": 6}, 10)
    await (await pool.ask("a"))
    waiting = await pool.ask("b")
    await pool.settle(seconds=1000)
    assert not waiting.done()
    assert not pool.children["a"][0].ending
    pool.fleet.leave(pool["a"])
    await pool.settle()
    assert waiting.done()


async def test_the_old_ones_memory_is_waited_for(make: MakePool) -> None:
    """llama.cpp#23668."""
    pool = make({"a": 6, "b": 6}, 10)
    pool.prepare["a"] = lambda child: child.may_end.clear()
    await pool.use("a")
    waiting = await pool.ask("b")
    (old,) = pool.children["a"]
    assert old.ending
    await pool.settle(seconds=20)
    assert not any(child.loading or child.loaded for child in pool.children["b"])
    assert pool.held_bytes <= 10
    old.may_end.set()
    await pool.settle()
    assert waiting.done()


async def test_bytes_count_not_models(make: MakePool) -> None:
    """llama.cpp PR#25326: ten small ones stay beside one another, two large ones do not."""
    pool = make({**{f"s{i}": 1 for i in range(10)}, "large": 8}, 12)
    for i in range(10):
        await pool.use(f"s{i}")
    assert len(pool.loaded_names) == 10
    await pool.use("large")
    assert pool.loaded_names == {"large", "s6", "s7", "s8", "s9"}
    assert sum(pool[f"s{i}"].counts["evictions"] for i in range(10)) == 6


async def test_what_a_model_took_the_last_time_counts(make: MakePool) -> None:
    pool = make({"a": 9, "b": 6}, 10, models={"a": {"ttl_seconds": 5}})
    pool.prepare["a"] = lambda child: setattr(child, "peak", 3)
    await pool.use("a")
    await pool.settle(seconds=6)
    await pool.use("b")
    await pool.use("a")
    assert pool.loaded_names == {"a", "b"}


async def test_memory_bytes_is_taken_for_granted(make: MakePool) -> None:
    pool = make({"a": 1, "b": 1}, 10, memory_bytes=6)
    await pool.use("a")
    await pool.use("b")
    assert pool.loaded_names == {"b"}


async def test_too_large_is_told_with_sizes_and_leaves_nothing(make: MakePool) -> None:
    pool = make({"a": 11, "b": 5}, 10)
    await pool.use("b")
    with pytest.raises(ModelTooLarge, match=r"takes 11 bytes .* together may take 10") as caught:
        await (await pool.ask("a"))
    assert caught.value.code == "model_too_large"
    assert caught.value.status == 503
    await pool.settle()
    assert pool.children["a"][0].gone.done()
    assert pool.loaded_names == {"b"}
    with pytest.raises(ModelTooLarge):
        await (await pool.ask("a"))
    assert len(pool.children["a"]) == 1  # it is known by now


async def test_what_a_process_has_that_only_weighs_its_model_is_not_what_the_model_takes(make: MakePool) -> None:
    pool = make({"a": 11, "b": 6, "c": 6}, 10)
    for name in pool.children:
        pool.prepare[name] = lambda child: setattr(child, "peak", 1)
    for _ in range(2):
        with pytest.raises(ModelTooLarge):
            await (await pool.ask("a"))
        await pool.settle()
    await (await pool.ask("b"))
    given_up = await pool.ask("c")
    given_up.cancel()
    await pool.settle()
    assert pool.children["c"][0].gone.done()
    waiting = await pool.ask("c")
    assert pool.loaded_names == {"b"}
    waiting.cancel()


async def test_what_took_more_than_there_may_be_is_loaded_again_alone(make: MakePool) -> None:
    """It said that it would fit, and what it maps of its files is the system's to have back."""
    pool = make({"a": 6, "b": 1}, 10)
    pool.prepare["a"] = lambda child: setattr(child, "peak", 12)
    await pool.use("a")
    pool.fleet.unload(pool["a"])
    await pool.use("b")
    await pool.use("a")
    assert pool.loaded_names == {"a"}
    pool.fleet.unload(pool["a"])
    await pool.use("b")
    assert pool.loaded_names == {"b"}


async def test_who_waits_for_busy_ones_has_no_process_meanwhile(make: MakePool) -> None:
    """Its memory would be counted nowhere, and what the model takes is known by then."""
    pool = make({"a": 6, "b": 6, "c": 1}, 10)
    await (await pool.ask("a"))
    waiting = [asyncio.create_task(pool.fleet.enter(pool[name])) for name in "bc"]
    await pool.settle()
    assert [len(pool.children[name]) for name in "bc"] == [1, 1]
    assert all(pool.children[name][0].gone.done() for name in "bc")
    assert not pool["b"].rested
    pool.fleet.leave(pool["a"])
    await pool.settle()
    assert all(one.done() for one in waiting)
    assert pool.loaded_names == {"b", "c"}
    assert pool["b"].counts["deaths"] == 0


async def test_requests_get_their_turn_in_order_of_arrival(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6, "c": 6}, 10)
    await (await pool.ask("a"))
    second, third = await pool.ask("b"), await pool.ask("c")
    pool.fleet.leave(pool["a"])
    await pool.settle()
    assert (second.done(), third.done()) == (True, False)
    pool.fleet.leave(pool["b"])
    await pool.settle()
    assert third.done()


async def test_a_stream_of_requests_for_one_does_not_starve_another(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6}, 10)
    await (await pool.ask("a"))
    other = await pool.ask("b")
    await (await pool.ask("a"))  # for a while it goes on
    await pool.settle(seconds=PATIENCE_SECONDS)
    late = await pool.ask("a")
    assert not late.done()
    pool.fleet.leave(pool["a"])
    pool.fleet.leave(pool["a"])
    await pool.settle()
    assert other.done()
    pool.fleet.leave(pool["b"])
    await pool.settle()
    assert late.done()


async def test_whoever_made_others_wait_can_leave(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6}, 10)
    await (await pool.ask("a"))
    other = await pool.ask("b")
    await pool.settle(seconds=PATIENCE_SECONDS)
    late = await pool.ask("a")
    other.cancel()
    await pool.settle()
    assert late.done()
    assert not pool.children["b"][0].loaded


async def test_a_request_waits_for_so_long_and_no_longer(make: MakePool) -> None:
    pool = make({"a": 6}, 10, queue_seconds=0.02)
    pool.prepare["a"] = lambda child: child.may_load.clear()
    with pytest.raises(QueueTimeout, match="not loaded within") as caught:
        await (await pool.ask("a"))
    assert caught.value.code == "queue_timeout"
    assert not pool["a"].waiting
    assert pool["a"].busy == 0


async def test_so_many_wait_and_no_more(make: MakePool) -> None:
    pool = make({"a": 6}, 10, max_queue=2)
    pool.prepare["a"] = lambda child: child.may_load.clear()
    tasks = [await pool.ask("a"), await pool.ask("a")]
    with pytest.raises(QueueFull):
        await (await pool.ask("a"))
    for task in tasks:
        task.cancel()


async def test_the_time_to_live_counts_from_the_end_of_the_last_answer(make: MakePool) -> None:
    pool = make({"a": 5}, 10, ttl_seconds=60)
    await (await pool.ask("a"))
    await (await pool.ask("a"))
    await pool.settle(seconds=100)
    pool.fleet.leave(pool["a"])
    await pool.settle(seconds=100)
    assert pool.loaded_names == {"a"}  # one is answered still
    pool.fleet.leave(pool["a"])
    await pool.settle(seconds=59)
    assert pool.loaded_names == {"a"}
    await pool.settle(seconds=2)
    assert pool.loaded_names == set()
    assert pool.fleet.ready
    await pool.use("a")
    assert len(pool.children["a"]) == 2


@pytest.mark.parametrize(("hint", "stays", "goes"), [(5, 4, 2), (300, 299, 2), (0, None, 0), (-1, 10**9, None)])
async def test_a_request_may_say_how_long(make: MakePool, hint: float, stays: float | None, goes: float | None) -> None:
    """ollama PR#8029: and that is never a reason to load it again."""
    pool = make({"a": 5}, 10, ttl_seconds=60)
    await pool.use("a", ttl_seconds=hint)
    if stays is not None:
        await pool.settle(seconds=stays)
        assert pool.loaded_names == {"a"}
    if goes is not None:
        await pool.settle(seconds=goes)
        assert pool.loaded_names == set()
    assert len(pool.children["a"]) == 1


async def test_what_is_there_from_the_start_stays_whatever_a_client_says(make: MakePool) -> None:
    pool = make({"a": 5}, 10, load="startup")
    await pool.settle()
    assert pool.loaded_names == {"a"}
    await pool.use("a", ttl_seconds=0)
    await pool.settle(seconds=10)
    assert pool.loaded_names == {"a"}


async def test_ready_once_all_are_loaded_that_are_to_be_from_the_start(make: MakePool) -> None:
    pool = make({"a": 5, "b": 5}, 10, models={"a": {"load": "startup"}})
    assert not pool.fleet.ready
    await pool.settle()
    assert pool.fleet.ready
    assert pool.loaded_names == {"a"}


async def test_at_the_start_nobody_pushes_another_out(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6}, 10, load="startup")
    await pool.settle()
    await pool.settle()
    assert pool.loaded_names == {"a"}
    assert pool.fleet.ready
    await pool.use("b")
    assert pool.loaded_names == {"b"}


async def test_at_the_start_the_configs_first_have_the_room(make: MakePool) -> None:
    """Whichever reads its file's head first."""
    pool = make({"a": 6, "b": 6, "c": 6}, 10, load="startup", models={"c": {"load": "on_demand"}})
    read = asyncio.Event()

    async def begin() -> int:
        await read.wait()
        return 6

    pool.prepare["a"] = lambda child: setattr(child, "begin", begin)
    await pool.settle()
    assert pool["b"].need == 6
    assert pool.loaded_names == set()
    asked = await pool.ask("c")
    assert asked.done()  # who is waited for does not wait for what nobody waits for
    pool.fleet.leave(pool["c"])
    pool.fleet.unload(pool["c"])
    await pool.settle()
    read.set()
    await pool.settle()
    assert pool.loaded_names == {"a"}


async def test_a_model_that_dies_is_loaded_again_after_a_while_that_grows(make: MakePool) -> None:
    pool = make({"a": 5}, 10, load="startup")
    await pool.settle()
    pool.children["a"][0].die(-11)
    await pool.settle()
    assert not pool.fleet.ready
    assert pool["a"].exit_code == -11
    await pool.settle(seconds=0.9)
    assert len(pool.children["a"]) == 1
    await pool.settle(seconds=0.2)
    assert pool.loaded_names == {"a"}
    pool.children["a"][1].die(-11)
    await pool.settle()
    await pool.settle(seconds=1.5)
    assert len(pool.children["a"]) == 2
    await pool.settle(seconds=1)
    assert pool.loaded_names == {"a"}
    assert pool.fleet.ready


async def test_three_deaths_within_a_minute_are_enough_until_an_administrator_says_so(make: MakePool) -> None:
    pool = make({"a": 5, "b": 5}, 10, load="startup")
    await pool.settle()
    for _ in range(3):
        pool.children["a"][-1].die(-6)
        await pool.settle()
        await pool.settle(seconds=10)
    await pool.settle(seconds=1000)
    assert len(pool.children["a"]) == 3
    assert not pool.fleet.ready
    assert pool["a"].failed
    with pytest.raises(ModelFailed, match="ended by signal 6"):
        await pool.fleet.enter(pool["a"])
    assert pool.loaded_names == {"b"}  # who has nothing to do with it
    pool.fleet.load(pool["a"])
    await pool.settle()
    assert pool.loaded_names == {"a", "b"}
    assert pool.fleet.ready


async def test_deaths_far_apart_are_not_too_many(make: MakePool) -> None:
    pool = make({"a": 5}, 10, load="startup")
    await pool.settle()
    for _ in range(10):
        pool.children["a"][-1].die(-6)
        await pool.settle()
        await pool.settle(seconds=70)
        assert pool.loaded_names == {"a"}


async def test_a_death_while_it_loads_is_tried_again_for_those_who_wait(make: MakePool) -> None:
    pool = make({"a": 5}, 10)
    pool.prepare["a"] = lambda child: child.may_load.clear()
    waiting = await pool.ask("a")
    pool.prepare.clear()
    pool.children["a"][0].die(-9)
    await pool.settle()
    assert not waiting.done()
    await pool.settle(seconds=1.1)
    assert waiting.done()


async def test_a_death_just_before_it_answers_is_noticed(make: MakePool) -> None:
    pool = make({"a": 5}, 10)
    said: list[str] = []

    async def loaded(member: Any) -> None:
        if not said:
            said.append("loaded")
            pool.children["a"][0].die(-9)
            await asyncio.sleep(0)

    pool.loaded = loaded  # type: ignore[method-assign]
    waiting = await pool.ask("a")
    assert not waiting.done()
    assert pool["a"].state.word == "unloaded"
    await pool.settle(seconds=1.1)
    assert waiting.done()
    assert pool["a"].child is pool.children["a"][1]


async def test_a_model_is_loaded_whatever_is_not_learned_of_it(make: MakePool) -> None:
    pool = make({"a": 5}, 10)

    async def loaded(member: Any) -> None:
        raise ValueError("its list is none")

    pool.loaded = loaded  # type: ignore[method-assign]
    await pool.use("a")
    assert pool.loaded_names == {"a"}
    assert pool["a"].counts["deaths"] == 0


async def test_a_model_that_cannot_be_loaded_is_told_at_once(make: MakePool) -> None:
    pool = make({"a": 5}, 10)
    pool.prepare["a"] = lambda child: setattr(child, "refusal", "a.gguf: no such file")
    with pytest.raises(ModelNotLoaded, match=r"a\.gguf: no such file"):
        await (await pool.ask("a"))
    assert pool["a"].counts["deaths"] == 1


async def test_a_refusal_is_tried_again_by_the_next_request_and_by_nobody_else(make: MakePool) -> None:
    pool = make({"a": 5}, 10)
    pool.prepare["a"] = lambda child: setattr(child, "refusal", "a.gguf: no such file")
    for n in range(1, 5):
        with pytest.raises(ModelNotLoaded, match=r"a\.gguf: no such file"):
            await (await pool.ask("a"))
        await pool.settle(seconds=5)
        assert len(pool.children["a"]) == n
    pool.fleet.load(pool["a"])
    for _ in range(5):
        await pool.settle(seconds=30)
    assert len(pool.children["a"]) == 5
    assert not pool["a"].failed
    pool.prepare.clear()
    await pool.use("a")
    assert pool.loaded_names == {"a"}


async def test_what_is_to_be_there_from_the_start_is_tried_three_times(make: MakePool) -> None:
    pool = make({"a": 5}, 10, load="startup")
    pool.prepare["a"] = lambda child: setattr(child, "refusal", "a.gguf: no such file")
    for _ in range(8):
        await pool.settle(seconds=5)
    assert len(pool.children["a"]) == 3
    pool.fleet.load(pool["a"])
    for _ in range(8):
        await pool.settle(seconds=5)
    assert len(pool.children["a"]) == 6
    with pytest.raises(ModelFailed):
        await pool.fleet.enter(pool["a"])


async def test_deaths_of_what_an_administrator_wants_back_are_counted(make: MakePool) -> None:
    pool = make({"a": 5}, 10)
    await pool.use("a", ttl_seconds=0)
    await pool.settle(seconds=1)
    pool.prepare["a"] = lambda child: child.die(-9)
    pool.fleet.load(pool["a"])
    for _ in range(8):
        await pool.settle(seconds=5)
    assert len(pool.children["a"]) == 4
    assert pool["a"].failed


async def test_an_administrator_loads_and_unloads(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6}, 10)
    pool.fleet.load(pool["a"])
    await pool.settle()
    assert pool.loaded_names == {"a"}
    pool.fleet.load(pool["b"])  # makes room as a request does
    await pool.settle()
    assert pool.loaded_names == {"b"}
    pool.fleet.unload(pool["b"])
    await pool.settle()
    assert pool.loaded_names == set()
    assert [state for name, state in pool.states if name == "a"] == [
        "loading", "loading", "loaded", "unloading", "unloaded",
    ]  # fmt: skip


async def test_unloading_what_loads_ends_it_and_is_no_failure(make: MakePool) -> None:
    pool = make({"a": 6}, 10)
    pool.prepare["a"] = lambda child: child.may_load.clear()
    pool.fleet.load(pool["a"])
    await pool.settle()
    pool.fleet.unload(pool["a"])
    await pool.settle()
    assert pool.children["a"][0].gone.done()
    assert pool["a"].counts["deaths"] == 0
    assert pool["a"].state.word == "unloaded"


async def test_what_has_been_told_to_end_is_not_loaded(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6}, 10)
    pool.prepare["b"] = lambda child: child.may_end.clear()
    await (await pool.ask("a"))
    waiting = await pool.ask("b")
    (weighed,) = pool.children["b"]
    pool.fleet.unload(pool["b"])
    pool.fleet.leave(pool["a"])
    await pool.settle()
    assert not weighed.loaded
    pool.prepare.clear()
    weighed.may_end.set()
    await pool.settle()
    assert waiting.result() is pool.children["b"][1].door


async def test_what_has_been_told_to_end_while_it_loads_is_not_loaded(make: MakePool) -> None:
    pool = make({"a": 6}, 10)

    def hold(child: FakeChild) -> None:
        child.may_load.clear()
        child.may_end.clear()

    pool.prepare["a"] = hold
    pool.fleet.load(pool["a"])
    await pool.settle()
    (first,) = pool.children["a"]
    pool.fleet.unload(pool["a"])
    await pool.settle()
    first.may_load.set()  # it was about to be ready
    pool.prepare.clear()
    waiting = await pool.ask("a")
    assert not waiting.done()
    first.may_end.set()
    await pool.settle(seconds=2)
    assert waiting.result() is pool.children["a"][1].door


async def test_a_request_that_comes_while_it_unloads_brings_it_back(make: MakePool) -> None:
    pool = make({"a": 6}, 10)
    pool.prepare["a"] = lambda child: child.may_end.clear()
    await pool.use("a")
    pool.fleet.unload(pool["a"])
    waiting = await pool.ask("a")
    assert not waiting.done()
    pool.prepare.clear()
    pool.children["a"][0].may_end.set()
    await pool.settle()
    assert waiting.done()
    assert len(pool.children["a"]) == 2


async def test_the_end_waits_for_what_runs_and_refuses_the_rest(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6}, 10)
    await (await pool.ask("a"))
    waiting = await pool.ask("b")
    closing = asyncio.create_task(pool.fleet.close(30))
    await pool.settle()
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await waiting
    with pytest.raises(EngineUnavailable, match="shutting down"):
        await pool.fleet.enter(pool["a"])
    assert not closing.done()
    pool.fleet.leave(pool["a"])
    await closing
    assert all(child.gone.done() for children in pool.children.values() for child in children)
