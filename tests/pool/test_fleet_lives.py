"""When models come and go by themselves or by an administrator's word, with children that are fakes."""

from __future__ import annotations

import asyncio

import pytest
from support.fake_child import FakeChild, MakePool

from llamafast.errors import (
    EngineUnavailable,
)


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


async def test_one_whose_process_will_not_end_holds_up_nobody_for_whom_there_is_room(make: MakePool) -> None:
    """What a process waits for in the system cannot be cut short. What it has is for who asks for it again."""
    pool = make({"a": 4, "b": 4, "c": 3}, 10)
    pool.prepare["a"] = lambda child: child.may_end.clear()
    await pool.use("a")
    pool.fleet.unload(pool["a"])
    again = await pool.ask("a")
    beside = await pool.ask("b")
    assert beside.done()
    pool.fleet.leave(pool["b"])
    # not for its memory, nor for that of others: it comes later
    later = await pool.ask("c")
    assert not later.done()
    assert pool.loaded_names == {"a", "b"}
    pool.prepare.clear()
    pool.children["a"][0].may_end.set()
    await pool.settle()
    assert again.result() is pool.children["a"][1].door
    assert pool.loaded_names == {"a", "c"}
    assert later.done()


async def test_a_process_that_dies_as_soon_as_it_is_weighed_is_not_waited_for(make: MakePool) -> None:
    pool = make({"a": 6, "b": 6}, 10)
    await (await pool.ask("a"))

    def dying(child: FakeChild) -> None:
        async def begin() -> int:
            child.die(-9)
            await asyncio.sleep(0)  # its end is known before what it has said
            return child.n_bytes

        child.begin = begin  # type: ignore[method-assign]

    pool.prepare["b"] = dying
    waiting = await pool.ask("b")
    assert pool["b"].counts["deaths"] == 1
    assert pool["b"].state.word == "unloaded"
    pool.prepare.clear()
    pool.fleet.leave(pool["a"])
    await pool.settle(seconds=1.1)
    await pool.settle()
    assert waiting.result() is pool.children["b"][1].door


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
