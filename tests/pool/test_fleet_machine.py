"""Any order of requests, ends, deaths and administrators: what always holds, and that everybody is answered."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_child import Pool

from llamafast.errors import LlamafastError
from llamafast.pool.member import State

SIZES = {"a": 3, "b": 4, "c": 6, "d": 9, "huge": 11}
MAX_BYTES = 10
NAMES = st.sampled_from(sorted(SIZES))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), NAMES),
        st.tuples(st.just("leave"), st.integers(0, 20), st.sampled_from([None, 0, 5])),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("die"), NAMES),
        st.tuples(st.just("load"), NAMES),
        st.tuples(st.just("unload"), NAMES),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 2, 7, 30, 100])),
        st.tuples(st.just("hold"), NAMES, st.booleans()),
    ),
    max_size=40,
)


class Machine:
    def __init__(self) -> None:
        self.pool = Pool(SIZES, MAX_BYTES, ttl_seconds=20, models={"a": {"load": "startup"}})
        self.asked: list[tuple[str, asyncio.Task[Any]]] = []
        self.busy: list[str] = []

    async def do(self, step: tuple[Any, ...]) -> None:
        pool = self.pool
        match step:
            case ("ask", name):
                self.asked.append((name, await pool.ask(name)))
            case ("leave", i, ttl) if self.busy:
                name = self.busy.pop(i % len(self.busy))
                pool.fleet.leave(pool[name], ttl)
            case ("cancel", i) if self.asked:
                name, task = self.asked.pop(i % len(self.asked))
                task.cancel()
            case ("die", name):
                for child in pool.children[name][-1:]:
                    child.die(-9)
            case ("load", name):
                pool.fleet.load(pool[name])
            case ("unload", name):
                pool.fleet.unload(pool[name])
            case ("wait", seconds):
                await pool.settle(seconds)
            case ("hold", name, held):
                for child in pool.children[name][-1:]:
                    for gate in (child.may_load, child.may_end):
                        if held:
                            gate.clear()
                        else:
                            gate.set()
        await pool.settle()
        self.collect()
        self.check()

    def collect(self) -> None:
        """Requests whose turn has come are busy from now on; refused ones are done."""
        waiting = []
        for name, task in self.asked:
            if not task.done():
                waiting.append((name, task))
            elif task.exception() is None:
                self.busy.append(name)
            else:
                assert isinstance(task.exception(), LlamafastError)
        self.asked = waiting

    def check(self) -> None:
        pool = self.pool
        assert pool.held_bytes <= MAX_BYTES
        for name, children in pool.children.items():
            member = pool[name]
            assert sum(not child.gone.done() for child in children) <= 1
            assert member.busy == self.busy.count(name)
            assert len(member.waiting) == sum(asked == name for asked, _ in self.asked)
            if member.state is State.LOADED:
                assert member.child is children[-1]

    async def end(self) -> None:
        """Nobody holds anything back any more, and all go: then everybody has an answer, and nothing is left."""
        pool = self.pool
        for _ in range(60):
            for children in pool.children.values():
                for child in children:
                    child.may_load.set()
                    child.may_end.set()
            for name in self.busy:
                pool.fleet.leave(pool[name])
            self.busy = []
            await pool.settle(3)
            self.collect()
            self.check()
            if not self.asked and not self.busy:
                break
        assert self.asked == []
        await pool.settle(1000)
        await pool.settle(1000)
        left = pool.loaded_names
        assert left <= {"a"}  # which has a time to live as well, and may have been brought again by its deaths
        await pool.close()
        assert all(child.gone.done() for children in pool.children.values() for child in children)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@settings(max_examples=40)
@given(STEPS)
def test_whatever_happens(steps: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        machine = Machine()
        for step in steps:
            await machine.do(step)
        await machine.end()

    asyncio.run(play())
