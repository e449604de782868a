"""A server whose model takes its time: what it answers meanwhile, and how it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import openai
import pytest
import websockets
from support.server_process import Process

from benchmarks.server import free_port
from serve.conftest import model_config
from serve.test_stopping import AT_ONCE

Start = Callable[..., AbstractContextManager[Process]]

# The model loads once there is a file beside the config, and does not if anything is in it.
HELD = """
import sys, time
from pathlib import Path
import llamafast.front, llamafast.server
from llamafast.cli import main
from llamafast.errors import ModelLoadError

load = llamafast.server.load_engine
llamafast.front.CLOSE_SECONDS = 0.5

def held(*arguments):
    gate = Path(sys.argv[1]).with_name("go")
    while not gate.exists():
        time.sleep(0.01)
    if fault := gate.read_text():
        raise ModelLoadError(fault)
    return load(*arguments)

llamafast.server.load_engine = held
sys.exit(main(["serve", sys.argv[1]]))
"""


@pytest.fixture
def start(tiny_model: Callable[[str], Path], tmp_path: Path) -> Start:
    """A server that answers already."""

    @contextmanager
    def started(before: str = "", **server: object) -> Iterator[Process]:
        port = free_port()
        config = model_config(tiny_model("tiny-llama"), port, alias="tiny")
        config["server"] = {"port": port, "drain_seconds": 1, **server}
        with Process(tmp_path, config, port=port, program=f"-c {shlex.quote(before + HELD)}") as process:
            try:
                until_answering(process)
                yield process
            finally:
                process.kill()

    return started


def until_answering(process: Process) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            process.connect().close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < until
            assert process.poll() is None, process.log
            time.sleep(0.02)


def asked(process: Process, path: str, method: str = "GET") -> tuple[int, object]:
    connection = HTTPConnection("127.0.0.1", process.port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, json.loads(body) if body else None


def test_probes_tell_when_the_model_is_there(start: Start, tmp_path: Path) -> None:
    with (
        start() as process,
        openai.OpenAI(base_url=f"http://127.0.0.1:{process.port}/v1", api_key="none", max_retries=0) as client,
    ):
        assert asked(process, "/live") == (200, {"status": "ok"})
        for path in ("/ready", "/health", "/healthz"):
            assert asked(process, path) == (503, {"status": "loading"})
            assert asked(process, path, "HEAD") == (503, None)
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model="tiny", prompt="x")
        assert (refused.value.status_code, refused.value.code) == (503, "engine_unavailable")
        assert refused.value.response.headers["retry-after"] == "1"
        assert "serving" not in process.log
        (tmp_path / "go").touch()
        process.until_serving()
        for path in ("/live", "/ready", "/health", "/healthz"):
            assert asked(process, path) == (200, {"status": "ok"})
        assert client.completions.create(model="tiny", prompt="x", max_tokens=2).usage
        process.terminate()
        process.ended(30)
        assert process.returncode == 0
        assert "Traceback" not in process.log


async def test_a_socket_is_closed_while_the_model_loads(start: Start) -> None:
    with start() as process:
        async with websockets.connect(f"ws://127.0.0.1:{process.port}/v1/responses") as socket:
            await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (1013, "the model is loading")


@pytest.mark.parametrize(
    "request_held",
    [b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n", pytest.param(b"", marks=pytest.mark.heavy)],
)
def test_a_model_that_does_not_load_is_the_exit_code(start: Start, tmp_path: Path, request_held: bytes) -> None:
    with start() as process, process.connect(request_held):
        (tmp_path / "written").write_text("no such tensor")
        (tmp_path / "written").rename(tmp_path / "go")  # an empty one would be taken for leave to load
        assert process.ended(30) < AT_ONCE
        assert process.returncode == 1
        assert "no such tensor" in process.log
        assert "Traceback" not in process.log


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.heavy)])
def test_a_signal_while_the_model_loads_ends_it_at_once(start: Start, number: signal.Signals) -> None:
    with start() as process, process.connect(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"):
        process.send_signal(number)
        assert process.ended(30) < AT_ONCE
        assert process.returncode == -number
        assert process.log == ""


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.heavy)])
def test_process_1_ends_itself_as_the_kernel_spares_it(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    as_first = "import os; os.getpid = lambda: 1"
    with start(as_first) as process:
        process.send_signal(number)
        assert process.ended(30) < AT_ONCE
        assert process.returncode == 128 + number
    (tmp_path / "go").touch()
    with start(as_first, drain_seconds=60) as process:
        process.until_serving()
        body = json.dumps({"prompt": "x", "n": 4, "max_tokens": 4000, "ignore_eos": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        with process.connect(head + body):
            time.sleep(0.2)
            process.send_signal(number)
            while "stopping" not in process.log:
                time.sleep(0.01)
            process.send_signal(number)
            assert process.ended(30) < AT_ONCE
        assert process.returncode == 128 + number


@pytest.mark.heavy
def test_a_hangup_while_the_model_loads_reads_the_keys_again(start: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    keys.chmod(0o600)
    with start(api_key_file=str(keys)) as process:
        keys.write_text("two\n")
        process.send_signal(signal.SIGHUP)
        until = time.monotonic() + 30
        while "after reading" not in process.log and time.monotonic() < until:
            time.sleep(0.02)
        (tmp_path / "go").touch()
        process.until_serving()
        for secret, status in ((b"one", b"401"), (b"two", b"200")):
            request = b"GET /v1/models HTTP/1.0\r\nx-api-key: %b\r\n\r\n" % secret  # and no Host
            with process.connect(request) as connection:
                assert connection.recv(20).split()[1] == status


@pytest.mark.heavy
def test_who_computes_is_free_and_who_answers_is_not(start: Start, tmp_path: Path) -> None:
    """The event loop starts before the engine's threads, which may run anywhere all the same."""
    every = os.sched_getaffinity(0)
    left = set(sorted(every)[1:]) or every
    with start() as process:
        (tmp_path / "go").touch()
        process.until_serving()
        before = seconds_of_threads(process.pid)
        body = json.dumps({"prompt": "x", "n": 16, "max_tokens": 200, "ignore_eos": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        with process.connect(head + body) as connection:
            assert connection.recv(20).startswith(b"HTTP/1.1 200")
        spent = {thread: ticks - before.get(thread, 0) for thread, ticks in seconds_of_threads(process.pid).items()}
        computing = max(spent, key=lambda thread: spent[thread])
        assert computing != process.pid
        assert os.sched_getaffinity(computing) == every
        assert os.sched_getaffinity(process.pid) == left
        confined = [thread for thread in spent if os.sched_getaffinity(thread) == left]
        assert len(confined) >= 3  # Granian's two beside the event loop's


def seconds_of_threads(pid: int) -> dict[int, int]:
    """Clock ticks that each thread has run."""
    ticks = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[int(task.name)] = int(fields[11]) + int(fields[12])
    return ticks
