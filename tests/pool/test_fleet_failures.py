"""Models that die or cannot be loaded, with children that are fakes: who is told, and when they are tried again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.fake_child import MakePool

from llamafast.errors import (
    ModelFailed,
    ModelNotLoaded,
)


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
