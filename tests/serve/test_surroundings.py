"""What the process needs of its console, its addresses and its limits."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from support.server_process import Process

from benchmarks.server import free_port, healthy
from serve.conftest import model_config

Start = Callable[..., AbstractContextManager[Process]]
GET = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
TOKENIZE = b'POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 15\r\n\r\n{"content":"a"}'


HEAVY_HOSTS = [pytest.param(host, host, marks=pytest.mark.heavy) for host in ("localhost", "127.0.0.1")]
HEAVY_NAMES = [pytest.param(name, "", marks=pytest.mark.heavy) for name in ("nowhere.invalid", "a" * 70)]


@pytest.fixture
def start(tiny_model: Callable[[str], Path], tmp_path: Path) -> Start:
    @contextmanager
    def started(host: str = "127.0.0.1", port: int = 0, **options: object) -> Iterator[Process]:
        config = model_config(tiny_model("tiny-llama"), port)
        config["server"] = {"host": host, "port": port, "drain_seconds": 1}
        with Process(tmp_path, config, port=port, **options) as process:  # type: ignore[arg-type]
            try:
                yield process
            finally:
                process.kill()

    return started


def answer(connection: socket.socket, message: bytes) -> bytes:
    connection.sendall(message)
    return connection.recv(4096)


def can_bind(host: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


@pytest.mark.parametrize(("host", "said"), [("::1", "[::1]"), *HEAVY_HOSTS])
def test_it_listens_where_it_says(start: Start, host: str, said: str) -> None:
    with start(host) as process:
        if not can_bind(host):  # a machine without IPv6
            process.ended(30)
            assert f"cannot listen on {host}:0" in process.log
            return
        assert process.until_serving() == said
        with process.connect(host=host) as connection:
            assert answer(connection, GET).startswith(b"HTTP/1.1 200")
        assert "%|" not in process.log  # a bar is for terminals
        process.terminate()
        process.ended(30)


@pytest.mark.parametrize(("host", "reason"), [("192.0.2.1", "assign"), *HEAVY_NAMES])
def test_an_address_that_cannot_be_had(start: Start, host: str, reason: str) -> None:
    with start(host) as process:
        process.ended(30)
        assert process.returncode == 1
        assert f"cannot listen on {host}:0" in process.log
        assert reason in process.log
        assert "Traceback" not in process.log


@pytest.mark.heavy
def test_a_log_that_nobody_reads_stops_nobody(start: Start) -> None:
    port = free_port()
    with start(port=port, output=subprocess.PIPE) as process:
        until_healthy(process)
        with process.connect() as connection:
            for _ in range(1500):  # lines of three pipes
                assert answer(connection, TOKENIZE).startswith(b"HTTP/1.1 200")
        assert process.stdout is not None
        first = process.stdout.readline()
        assert b" I " in first
        process.terminate()
        rest = process.stdout.read()
        assert process.wait(30) == 0
        assert rest.count(b"route=/tokenize") == 1500
        assert b"stopped" in rest


@pytest.mark.heavy
def test_a_log_whose_reader_has_gone(start: Start) -> None:
    port = free_port()
    with start(port=port, output=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        until_healthy(process)
        with process.connect() as connection:
            for _ in range(20):
                assert answer(connection, TOKENIZE).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGPIPE)
        assert healthy(port, "/healthz")
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.heavy
def test_it_serves_without_standard_streams(start: Start) -> None:
    port = free_port()
    with start(port=port, redirect="0<&- 1>&- 2>&-") as process:
        until_healthy(process)
        with process.connect() as connection:
            assert answer(connection, TOKENIZE).startswith(b"HTTP/1.1 200")
        assert {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (0, 1, 2)} == {os.devnull}
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.heavy
def test_a_terminal_that_hangs_up_ends_it_unless_told_otherwise(start: Start) -> None:
    with start(limits="trap '' HUP") as process:  # what nohup does
        process.until_serving()
        process.send_signal(signal.SIGHUP)
        assert healthy(process.port, "/healthz")
        process.terminate()
        process.ended(30)
        assert process.returncode == 0


@pytest.mark.heavy
def test_half_open_connections_leave_descriptors(start: Start) -> None:
    """More of them than descriptors: the connections that are served go on, and grammars find pipes for a process."""
    constrained = json.dumps({"prompt": "x", "max_tokens": 4, "json_schema": {"type": "boolean"}}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    request = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(constrained), constrained)
    with start(limits="ulimit -Sn 64; ulimit -Hn 200") as process, ExitStack() as stack:
        process.until_serving()
        served = stack.enter_context(process.connect(GET))
        assert served.recv(1000)
        for _ in range(300):
            stack.enter_context(process.connect(head))
        time.sleep(0.2)
        assert len(os.listdir(f"/proc/{process.pid}/fd")) < 200
        assert answer(served, request).startswith(b"HTTP/1.1 200")
        stack.close()
        time.sleep(0.2)
        assert healthy(process.port, "/healthz")
        assert "Traceback" not in process.log
        process.terminate()
        process.ended(30)


def test_a_context_that_does_not_fit_says_so(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """What there plainly is too little for is seen before it is taken; what is refused is told with the same advice."""
    config = model_config(tiny_model("tiny-llama"), 0, n_ctx=2_000_000_000)
    with Process(tmp_path, config) as process:
        process.ended(30)
        assert process.returncode == 1
        assert "a context of 2000000000 tokens does not fit into memory: it takes 119" in process.log
        assert "Lower model.n_ctx to 8192" in process.log
    config = model_config(tiny_model("tiny-llama"), 0, n_ctx=1_000_000)
    with Process(tmp_path, config, limits="ulimit -v 6000000") as process:
        process.ended(30)
        assert process.returncode == 1
        assert "a context of 1000000 tokens does not fit into memory" in process.log
        assert "Lower model.n_ctx to 8192" in process.log
        assert re.search(r"\d+\.\d\d GB was refused, \d+\.\d\d GB are available", process.log)
        assert "Lower model.n_ctx" in process.log
        assert "Traceback" not in process.log


def until_healthy(process: Process) -> None:
    until = time.monotonic() + 60
    while not healthy(process.port, "/healthz"):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
