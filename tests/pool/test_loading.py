"""Processes that hang while they load, and those that only take long."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path
from typing import cast

import pytest
from msgspec import Raw
from pool.processes import alive, started

from llamafast.config import FromPretrained
from llamafast.errors import ModelLoadError
from llamafast.pool import child as child_module
from llamafast.pool import children
from llamafast.pool.children import Child, Died
from llamafast.pool.wire import FromChild, Needs, Progress, Refused, line

BOUND = 0.4
STUCK = "it has come no further for {:g} seconds while it loaded"


async def made(folder: Path, seconds: float | None = BOUND) -> Child:
    return Child(Raw(b"{}"), folder / "s", (1, 1), load_seconds=seconds)


async def asked(folder: Path, seconds: float | None = BOUND) -> tuple[asyncio.StreamReader, asyncio.Task[int]]:
    """What a child without a process is to say, and what is made of it. Both are of one loop: who is late is so for
    both."""
    child = await made(folder, seconds)
    child.gone.set_result(-9)
    child._reader = reader = asyncio.StreamReader()
    child._writer = cast(asyncio.StreamWriter, Silent())

    async def weighed() -> int:
        needs = await child._ask(child._begin)
        assert isinstance(needs, Needs)
        return needs.n_bytes

    task = asyncio.create_task(weighed())
    await asyncio.sleep(0)
    return reader, task


class Silent:
    def write(self, data: bytes) -> None:
        pass


async def test_a_process_that_says_nothing_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "COMMAND", (sys.executable, "-c", "import time; time.sleep(600)"))
    child = await made(folder)
    with pytest.raises(Died, match=STUCK.format(BOUND)) as died:
        await child.begin()
    assert died.value.code == child.gone.result() == -9


async def test_one_that_refuses_and_hangs_at_its_end_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = f"import socket, sys, time; socket.socket(fileno=int(sys.argv[1])).sendall({line(Refused('no'))!r})"
    monkeypatch.setattr(children, "COMMAND", (sys.executable, "-c", f"{says}; time.sleep(600)"))
    monkeypatch.setattr(children, "CLOSE_SECONDS", 0.1)
    child = await made(folder, None)
    with pytest.raises(ModelLoadError, match=r"^no$"):
        await child.begin()
    assert child.gone.result() == -9


async def test_one_that_comes_further_is_given_its_time(folder: Path) -> None:
    reader, task = await asked(folder)
    for _ in range(8):
        await asyncio.sleep(BOUND / 4)
        reader.feed_data(line(Progress()))
    assert not task.done()
    reader.feed_data(line(Needs(5)))
    assert await task == 5


async def test_what_comes_from_a_network_takes_what_it_takes(folder: Path) -> None:
    reader, task = await asked(folder)
    reader.feed_data(line(Progress(fetched=True)))
    await asyncio.sleep(3 * BOUND)
    assert not task.done()
    # and what is done with it does not
    reader.feed_data(line(Progress()))
    with pytest.raises(Died, match=STUCK.format(BOUND)):
        await task


async def test_without_a_bound_nobody_is_ended(folder: Path) -> None:
    reader, task = await asked(folder, None)
    await asyncio.sleep(BOUND)
    reader.feed_data(line(Needs(5)))
    assert await task == 5


async def test_time_in_which_the_parent_stood_still_too_does_not_count(folder: Path) -> None:
    reader, task = await asked(folder)
    time.sleep(3 * BOUND)  # noqa: ASYNC251 - as a container does that is paused
    await asyncio.sleep(BOUND / 4)
    assert not task.done()
    reader.feed_data(line(Needs(5)))
    assert await task == 5


def test_a_child_tells_when_weights_were_read_or_a_graph_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[FromChild] = []
    loaded = threading.Event()
    # who asks: before it begins, then again and again
    times = iter([5.0, 5.0, 6.0, 6.0, 7.0])

    def last_progress() -> float:
        if (at := next(times, None)) is None:
            loaded.set()
            return 7.0
        return at

    monkeypatch.setattr(child_module, "last_progress", last_progress)
    monkeypatch.setattr(child_module, "_PROGRESS_SECONDS", 0.001)
    child_module._tell_of_progress(loaded, told.append)
    assert told == [Progress(), Progress()]


def test_a_child_tells_what_it_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[FromChild] = []
    monkeypatch.setattr(child_module, "resolve_model", lambda source: tmp_path)
    child_module._found("m.gguf", told.append)
    child_module._found(FromPretrained(repo_id="a/b", filename="m.gguf"), told.append)
    assert told == [Progress(), Progress(), Progress(fetched=True), Progress()]


@pytest.mark.scale
def test_a_model_that_hangs_once_while_it_loads_is_there_for_who_waits(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    stuck = folder / "stuck"
    stuck.touch()
    config = {
        "models": [{"alias": "a", "path": str(stuck), "load": "on_demand"}],
        "pool": {"load_timeout_seconds": 10.0},  # more than a process takes to start on a busy machine
    }
    with started(folder, config, stubs=True) as server:
        answer = server.client.post("/v1/completions", json={"model": "a", "prompt": "hi", "max_tokens": 3})
        assert answer.status_code == 200, answer.text
        assert f"a has failed: {STUCK.format(10.0)}" in server.process.log
        assert not alive(int(stuck.read_text()))
