"""Processes that hang, with children that are fakes: which are ended, when, and that others never are."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpcore2
import pytest
import uvloop
from support.fake_child import MakePool, Pool

from llamafast.loop_sockets import Crowded, Scarce
from llamafast.pool.children import Door, client
from llamafast.pool.passing import ask
from llamafast.pool.watchdog import Watchdog

BOUND = 120.0
Answer = tuple[int, bytes] | Exception


class Asked:
    """How models answer, by name; others are well."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.answers: dict[str, Answer] = {}
        self.slept = 0.0
        self.dog = Watchdog(pool.fleet, BOUND, healthz=self._healthz, now=pool.clock)

    async def _healthz(self, door: Door) -> tuple[int, bytes]:
        (name,) = (name for name, children in self.pool.children.items() if any(one.door is door for one in children))
        self.pool.clock.at += self.slept
        self.slept = 0.0
        answer = self.answers.get(name, (200, b'{"status": "ok"}'))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def look(self, seconds: float) -> None:
        """After so long, as often as it would by itself."""
        until = self.pool.clock.at + seconds
        while self.pool.clock.at < until:
            await self.pool.settle(seconds=5)
            await self.dog.look()
        await self.pool.settle()


@pytest.fixture
def two(make: MakePool) -> Callable[[], Awaitable[Asked]]:
    async def loaded() -> Asked:
        pool = make({"a": 5, "b": 5}, 10, load="startup")
        await pool.settle()
        assert pool.loaded_names == {"a", "b"}
        return Asked(pool)

    return loaded


SILENT: list[Answer] = [TimeoutError(), httpcore2.ReadError("gone"), httpcore2.ConnectError("gone"), Crowded("full")]


@pytest.mark.parametrize("answer", [*SILENT, (503, b'{"status": "stalled", "seconds": 120.5}')])
async def test_one_that_hangs_is_ended_and_started_again(two: Callable[[], Awaitable[Asked]], answer: Answer) -> None:
    one = await two()
    pool = one.pool
    running = await pool.ask("a")
    assert running.done()
    one.answers["a"] = answer
    await one.look(BOUND - 10 if isinstance(answer, Exception) else 5)
    if isinstance(answer, Exception):
        assert not pool.children["a"][0].gone.done()
        await one.look(15)
    assert pool.children["a"][0].gone.result() == -9
    pool.fleet.leave(pool["a"])
    assert pool["a"].counts["deaths"] == 1
    assert not pool.fleet.ready
    one.answers.clear()
    await pool.settle(seconds=1.1)
    assert pool.loaded_names == {"a", "b"}
    assert len(pool.children["a"]) == 2
    assert len(pool.children["b"]) == 1
    assert pool.fleet.ready


async def test_its_fault_is_told(two: Callable[[], Awaitable[Asked]], caplog: pytest.LogCaptureFixture) -> None:
    one = await two()
    one.answers = {"a": (503, b'{"status": "stalled", "seconds": 130}'), "b": TimeoutError()}
    await one.look(5)
    assert "a has failed: its engine has stood still over work for 130 s" in caplog.text
    assert one.pool["a"].exit_code == -9
    await one.look(BOUND)
    assert "b has failed: it has not answered for 12" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        (503, b'{"status": "stalled", "seconds": 119.9}'),
        (503, b'{"status": "draining"}'),
        (503, b'{"status": "loading"}'),
        Scarce("no descriptors"),
    ],
)
async def test_one_that_is_slow_or_busy_stays(two: Callable[[], Awaitable[Asked]], answer: Answer) -> None:
    one = await two()
    one.answers["a"] = answer
    await one.look(3 * BOUND)
    assert one.pool.loaded_names == {"a", "b"}


async def test_an_answer_counts_as_life(two: Callable[[], Awaitable[Asked]]) -> None:
    one = await two()
    for _ in range(4):
        one.answers["a"] = TimeoutError()
        await one.look(BOUND - 20)
        assert one.pool["a"].silent
        one.answers.clear()
        await one.look(5)
        assert not one.pool["a"].silent
    assert one.pool.loaded_names == {"a", "b"}


@pytest.mark.parametrize("answer", [TimeoutError(), (503, b'{"status": "stalled", "seconds": 400}')])
@pytest.mark.parametrize("asked", [False, True])
async def test_nobody_hangs_while_the_parent_stands_still_too(
    two: Callable[[], Awaitable[Asked]], asked: bool, answer: Answer
) -> None:
    """Between two questions, or while one is ``asked``."""
    one = await two()
    clock = one.pool.clock
    await one.look(5)
    one.answers["a"] = answer
    if asked:
        one.slept = 400.0
    else:
        clock.at += 400
    await one.look(5)
    assert one.pool.loaded_names == {"a", "b"}
    one.answers.clear()
    await one.look(BOUND)
    one.answers["a"] = answer
    await one.look(BOUND + 10)
    assert one.pool["a"].counts["deaths"] >= 1


def test_a_queue_of_connections_that_is_full_says_that_nobody_takes_them(tmp_path: Path) -> None:
    """On the loop that serves."""

    async def asked(path: Path) -> None:
        door = Door(path, "secret", client(path))
        waiting = [asyncio.create_task(ask(door, "GET", "/healthz")) for _ in range(3)]
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        assert [type(task.exception()) for task in done] == [Crowded]

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        uvloop.run(asked(tmp_path / "s"))


async def test_who_comes_while_it_is_ended_waits_for_the_next_one(two: Callable[[], Awaitable[Asked]]) -> None:
    """The system may take its time: what a process waits for in it cannot be cut short."""
    one = await two()
    pool = one.pool
    (child,) = pool.children["a"]
    child.kill = lambda: None  # type: ignore[method-assign]
    one.answers["a"] = TimeoutError()
    await one.look(BOUND + 10)
    assert not child.gone.done()
    waiting = await pool.ask("a")
    assert not waiting.done()
    child.die(-9)
    one.answers.clear()
    await pool.settle()
    await pool.settle(seconds=1.1)
    assert waiting.result() is pool.children["a"][1].door


async def test_what_is_not_loaded_is_not_asked(make: MakePool) -> None:
    pool = make({"a": 5}, 10)
    one = Asked(pool)
    one.answers["a"] = AssertionError("asked")
    await one.look(5)
    await pool.use("a")
    pool.fleet.unload(pool["a"])
    await one.look(5)
    assert pool["a"].counts["deaths"] == 0
