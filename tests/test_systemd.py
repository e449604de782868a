"""What a service of Type=notify tells systemd, heard by a socket in its place."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serve.conftest import model_config
from support.server_process import Process

from llamafast.systemd import Service


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(tmp_path / "notify"))
        one.settimeout(20)
        yield one


def service(monkeypatch: pytest.MonkeyPatch, address: object, **variables: object) -> Service:
    for name, value in {"NOTIFY_SOCKET": address, **variables}.items():
        monkeypatch.setenv(name, str(value))
    return Service()


def test_states_are_told_and_children_know_nothing_of_it(monkeypatch, heard, tmp_path):
    one = service(monkeypatch, tmp_path / "notify", WATCHDOG_USEC=1, WATCHDOG_PID=1)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
    one.tell("READY=1\nSTATUS=x")
    assert heard.recv(100) == b"READY=1\nSTATUS=x"
    Service().tell("READY=1")
    heard.settimeout(0)
    with pytest.raises(BlockingIOError):
        heard.recv(100)


def test_a_socket_without_a_file_is_one_too(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        name = f"llamafast-test-{os.getpid()}"
        heard.bind(f"\0{name}")
        service(monkeypatch, f"@{name}").tell("READY=1")
        assert heard.recv(100) == b"READY=1"


def test_nobody_who_listens_costs_nothing_but_a_line(monkeypatch, tmp_path, caplog):
    service(monkeypatch, tmp_path / "none").tell("READY=1\nSTATUS=x")
    assert [record.message.partition(":")[0] for record in caplog.records] == ["systemd  was not told READY=1"]


async def test_the_watchdog_hears_of_what_is_alive_only(monkeypatch, heard, tmp_path):
    one = service(monkeypatch, tmp_path / "notify", WATCHDOG_USEC=20_000, WATCHDOG_PID=os.getpid())
    lives = iter([True, False, False, True])
    task = asyncio.create_task(one.watch(lambda: next(lives)))
    with pytest.raises(RuntimeError):  # StopIteration, in a coroutine
        await task
    heard.settimeout(0)
    assert [heard.recv(100), heard.recv(100)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        heard.recv(100)
    # another process's, or no watchdog
    for variables in ({"WATCHDOG_USEC": 20_000, "WATCHDOG_PID": 1}, {"WATCHDOG_USEC": "x"}, {}):
        await asyncio.wait_for(service(monkeypatch, tmp_path / "notify", **variables).watch(lambda: True), 30)


@pytest.mark.heavy
def test_a_server_tells_when_it_serves_lives_and_stops(
    tiny_model: Callable[[str], Path], tmp_path: Path, heard: socket.socket
) -> None:
    config = model_config(tiny_model("tiny-llama"), 0, alias="tiny")
    limits = f"export NOTIFY_SOCKET={tmp_path / 'notify'} WATCHDOG_USEC=200000"
    with Process(tmp_path, config, limits=limits) as process:
        assert heard.recv(200).startswith(b"READY=1\nSTATUS=serving http://127.0.0.1:")
        assert [heard.recv(200) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        process.send_signal(signal.SIGHUP)
        process.until_told(re.compile("keys     are in no file that could be read again"))
        process.send_signal(signal.SIGTERM)
        while (said := heard.recv(200)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"
        process.ended(30)
        assert process.returncode == 0
