"""How the process ends: in time whatever clients do, and at once when asked twice."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from support.server_process import Process

from benchmarks.server import free_port, wait_until_healthy
from llamafast.front import leave_after
from serve.conftest import model_config

Start = Callable[..., AbstractContextManager[Process]]

# However busy the machine is, and much less than there would be to wait for.
AT_ONCE = 20.0
RUNNING = json.dumps({"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}).encode()
STREAM = json.dumps({"prompt": "x", "n": 16, "max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()


@pytest.fixture
def start(tiny_model: Callable[[str], Path], tmp_path: Path) -> Start:
    @contextmanager
    def started(drain_seconds: float = 0.5, drain_delay_seconds: float = 0) -> Iterator[Process]:
        port = free_port()
        config = model_config(tiny_model("tiny-llama"), port)
        config["server"] = {
            "port": port, "drain_seconds": drain_seconds, "drain_delay_seconds": drain_delay_seconds,
        }  # fmt: skip
        with Process(tmp_path, config, port=port) as process:
            try:
                wait_until_healthy(process, port, "/healthz", tmp_path / "log")
                yield process
            finally:
                process.kill()

    return started


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()


UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
HELD = [
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n",  # half a head
    post("/v1/completions", b'{"prompt"', 1000),  # half a body
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n50\r\n{",  # half a chunk
    post("/v1/completions", STREAM),  # which nobody reads
    UPGRADE,
    b"",
]


def until_stopping(process: Process, number: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(number)
    process.until_told(re.compile("stopping"))


def answer(process: Process, message: bytes) -> tuple[int, str]:
    """The status and all of the answer on a connection of its own."""
    with process.connect(message.replace(b"host: localhost", b"host: localhost\r\nconnection: close")) as connection:
        whole = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return int(whole.split()[1]), whole


@pytest.mark.heavy
def test_it_ends_in_time(start: Start) -> None:
    with start(drain_seconds=1, drain_delay_seconds=0.5) as process, ExitStack() as stack:
        for message in HELD:
            connection = stack.enter_context(socket.socket())
            # so that what nobody reads stands still soon
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", process.port))
            connection.sendall(message)
        time.sleep(0.3)
        process.terminate()
        assert process.ended(60) < 0.5 + 1 + 5 + 20
    assert process.returncode == 0
    assert "stopped" in process.log
    assert "Traceback" not in process.log, process.log


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.heavy)])
def test_a_second_signal_ends_it_at_once(start: Start, number: signal.Signals) -> None:
    with start(drain_seconds=60) as process:
        with process.connect(post("/v1/completions", STREAM)) as connection:
            assert connection.recv(100)
            until_stopping(process, number)
            assert process.poll() is None
            process.send_signal(number)
            assert process.ended(30) < AT_ONCE
        assert process.returncode == -number
        assert "Traceback" not in process.log, process.log


def test_what_runs_finishes_and_what_comes_is_refused(start: Start) -> None:
    with start(drain_seconds=60) as process, process.connect(post("/v1/completions", RUNNING)) as running:
        text = running.recv(65536)
        assert text.startswith(b"HTTP/1.1 200")
        until_stopping(process)
        status, refusal = answer(process, post("/v1/completions", RUNNING))
        assert (status, "retry-after: 1\r\n" in refusal) == (503, True)
        assert json.loads(refusal.partition("\r\n\r\n")[2])["error"]["code"] == "engine_unavailable"
        assert answer(process, get("/v1/models"))[0] == 200
        assert answer(process, get("/ready"))[0] == 503
        assert answer(process, get("/live"))[0] == 200
        while more := running.recv(65536):
            text += more
        assert text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert text.count(b'"finish_reason":"length"') == 1
        assert process.ended(30) < AT_ONCE
    assert process.returncode == 0
    assert "stopping: running requests have 60 s to finish" in process.log
    assert "Traceback" not in process.log, process.log


def test_who_has_nothing_to_do_speaks_of_no_requests(start: Start) -> None:
    with start(drain_seconds=30) as process:
        process.terminate()
        assert process.ended(10) < 5
    assert "running requests" not in process.log
    assert re.findall(r" I (stop.*)", process.log) == ["stopping", "stopped"]


@pytest.mark.heavy
def test_requests_are_served_until_all_know_that_it_is_not_ready(start: Start) -> None:
    with start(drain_delay_seconds=60) as process:
        until_stopping(process)
        status, told = answer(process, get("/ready"))
        assert (status, told.endswith('{"status":"draining"}')) == (503, True)
        assert answer(process, get("/healthz"))[0] == 200
        for _ in range(2):
            assert answer(process, post("/v1/completions", b'{"prompt": "x", "max_tokens": 2}'))[0] == 200
        process.terminate()
        assert process.ended(30) < AT_ONCE
    assert process.returncode == -signal.SIGTERM


def test_an_interrupt_while_it_loads_leaves_no_traceback() -> None:
    """Whatever the main thread is in: here it could not run a handler for half a minute."""
    code = (
        # of a shell's background job it would be ignored
        "import hashlib, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from llamafast.console import interruptible\n"
        "with interruptible(): print('loading', flush=True); hashlib.pbkdf2_hmac('sha1', b'', b'', 10**9)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == -signal.SIGINT
            assert process.stderr.read() == b""
        finally:
            process.kill()


@pytest.mark.parametrize("module", ["llamafast.server", "llamafast.pool.parent"])
def test_no_module_that_loads_keeps_an_interrupt_for_itself(module: str, tmp_path: Path) -> None:
    """As those do that try imports and go on whatever comes of them."""
    several = ' "load": "on_demand",' if "pool" in module else ""
    (tmp_path / "cfg.json").write_text(f'{{"model": {{{several} "path": "m.gguf"}}}}')
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            try: os.kill(os.getpid(), signal.SIGINT); sys.exit('kept')\n"
        "            except KeyboardInterrupt: pass\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from llamafast.cli import main\n"
        f"sys.exit(main(['serve', {str(tmp_path / 'cfg.json')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_any_number_of_seconds_can_be_waited() -> None:
    deadline = leave_after(1e300, lambda: None)
    deadline.join(0.1)
    assert deadline.is_alive()
    deadline.cancel()
