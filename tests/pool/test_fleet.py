"""Who has room beside whom and who waits, with children that are fakes and a clock that stands still: what others
suffer from."""

from __future__ import annotations

import asyncio

import pytest
from support.fake_child import FakeChild, MakePool

from llamafast.errors import (
    ModelTooLarge,
    QueueFull,
    QueueTimeout,
)
from llamafast.pool.budget import PATIENCE_SECONDS, Holder, Phase


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


async def test_a_process_that_waits_for_an_eviction_counts_with_what_it_has(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6}, 10)
    pool.prepare["a"] = lambda child: child.may_end.clear()
    pool.prepare["b"] = lambda child: setattr(child, "peak", 2)
    await pool.use("a")
    waiting = await pool.ask("b")
    assert (pool["b"].state.word, pool["b"].n_bytes) == ("loading", 2)
    assert pool["b"].holds == Holder("b", Phase.WEIGHED, 2, False, 0.0)
    pool.children["a"][0].may_end.set()
    await pool.settle()
    assert waiting.done()
    assert pool["b"].n_bytes == 6


async def test_nothing_loads_into_the_memory_of_processes_that_wait_behind_it(make: MakePool) -> None:
    pool = make({"a": 9, "b": 1, "c": 1}, 10, load="startup")
    for name in "bc":
        pool.prepare[name] = lambda child: (setattr(child, "peak", 2), child.may_end.clear())
    await pool.settle()
    assert all(pool.children[name][0].ending for name in "bc")
    for name in "bc":
        assert not pool.children["a"][0].loading
        assert pool.loaded_names == set()
        pool.children[name][0].may_end.set()
        await pool.settle()
    assert pool.loaded_names >= {"a"}
    assert pool["a"].counts["deaths"] == pool["b"].counts["deaths"] == 0


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
