"""`llamafast chat` on a terminal and behind a pipe, against a server that says what it is told to."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llamafast import cli
from llamafast.cli.talk import talk
from llamafast.errors import ConfigError

ROOT = Path(__file__).parents[2]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Request(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = b'{"data": [{"id": "toy"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["authorization"])
        asked = body["messages"][-1]["content"]
        if asked == "vanish":
            self.close_connection = True
            return
        if asked in ("refuse", "hostile"):
            told = b'{"error": {"message": "no such thing"}}'
            if asked == "hostile":
                told = b'{"error": {"message": "no \\n such \\u001b[31mthing"}}'
            self.send_response(400)
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)
            return
        self.send_response(200)
        self.end_headers()
        if asked == "other":
            self.wfile.write(b'data: {"choices": [{"delta": {"content": ["x"]}}]}\n\n')
            return
        self.say({"reasoning_content": "Hm."})
        self.say({"content": f"You said \x1b]0;{asked}\x07. "})
        if asked == "endless":
            try:
                while True:
                    self.say({"content": "on and on "})
                    time.sleep(0.01)
            except OSError:
                self.server.left.set()
                return
        self.say({"content": "Bye."}, usage={"completion_tokens": 12})
        self.wfile.write(b"data: [DONE]\n\n")

    def say(self, delta: dict[str, str], **more: Any) -> None:
        self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": delta}], **more}).encode() + b"\n\n")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str, command: Sequence[str] = ("-m", "llamafast", "chat")) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "LLAMAFAST_API_KEY": "secret", "TERM": "dumb"}
            os.execve(sys.executable, [sys.executable, *command, *arguments], environment)
        self.seen = ""

    def until(self, text: str) -> str:
        """What comes up to ``text``."""
        until = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self._fd], [], [], 0.1)[0]:
                self.seen += os.read(self._fd, 65536).decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, line: str) -> None:
        os.write(self._fd, line.encode() + b"\n")

    def end(self) -> int:
        os.write(self._fd, b"\x04")
        return self.ended()

    def ended(self) -> int:
        """Its exit code."""
        until = time.monotonic() + 30
        while (ended := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(ended[1])


def test_a_conversation_on_a_terminal(server: Server) -> None:
    terminal = Terminal(server.url, "--system", "Be brief.", "--max-tokens", "50")
    terminal.until("toy; /help says")
    terminal.until("> ")
    terminal.type("hello")
    answer = terminal.until("> ")
    # thoughts are dim, control characters of the answer are gone, and the times are told
    assert re.search(r"\x1b\[2mHm\.\x1b\[0m\s+You said \]0;hello\. Bye\.", answer)
    assert re.search(r"12 tokens, [\d.]+ tok/s, first after \d\.\d\d s", answer)
    terminal.type("endless")
    terminal.until("on and on on and on")
    os.kill(terminal.pid, signal.SIGINT)
    terminal.until("stopped")
    assert server.left.wait(30)
    terminal.until("> ")
    terminal.type("one \\")
    terminal.until(". ")
    terminal.type("two")
    terminal.until("Bye.")
    terminal.until("> ")
    terminal.type("refuse")
    terminal.until("the server says 400: no such thing")
    terminal.until("> ")
    terminal.type("vanish")
    terminal.until("no answer: RemoteProtocolError")
    terminal.until("> ")
    terminal.type("/system Be long.")
    terminal.until("> ")
    terminal.type("again")
    terminal.until("Bye.")
    terminal.until("> ")
    assert terminal.end() == 0
    said = [[message["content"] for message in body["messages"]] for body in server.bodies]
    assert said[0] == ["Be brief.", "hello"]
    assert said[1] == ["Be brief.", "hello", "You said \x1b]0;hello\x07. Bye.", "endless"]
    assert said[2][4].startswith("You said \x1b]0;endless\x07. on and on")
    assert said[2][5:] == ["one \ntwo"]
    # what was refused is not said, and another system prompt begins again
    assert said[5] == ["Be long.", "again"]
    assert {body["max_tokens"] for body in server.bodies} == {50}
    assert set(server.keys) == {"Bearer secret"}


def asked(question: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llamafast", "chat", *arguments],
        input=question, capture_output=True, text=True, env={**os.environ, **environ}, cwd=ROOT, timeout=60,
    )  # fmt: skip


def test_a_question_through_a_pipe(server: Server) -> None:
    done = asked("hello\n", server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "You said ]0;hello. Bye.\n", "")
    done = asked("refuse", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "llamafast: the server says 400: no such thing\n"


def test_what_is_no_answer_is_told_without_its_control_characters(server: Server) -> None:
    done = asked("hostile", server.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "llamafast: the server says 400: no \n such [31mthing\n"
    done = asked("other", server.url)
    assert done.returncode == 1
    assert done.stderr.startswith("llamafast: the server says what comes is no answer of OpenAI's API: ")


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["http://localhost:99999"], "http://localhost:99999: Port out of range 0-65535"),
        (["http://[::1"], "http://[::1: Invalid IPv6 URL"),
        (["127.0.0.1:1"], "127.0.0.1:1: no such file; did you mean http://127.0.0.1:1?"),
        (["http://127.0.0.1:1", "-m", "m.gguf"], "a model, or the URL of a server, and not both"),
        (["--port", "9000"], "--port 9000: is about a model that is served for this"),
        (["HTTP://127.0.0.1:1"], "no server answers: ConnectError"),
    ],
)
def test_a_server_that_cannot_be_asked(arguments: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        talk(cli.parse(["chat", *arguments]))
    assert str(caught.value).startswith(fault)


@pytest.mark.heavy
def test_a_model_is_served_for_a_question(tiny_model: Any) -> None:
    """Whatever the environment says of a server."""
    path = str(tiny_model("tiny-scripted"))
    done = asked("x", path, "--max-tokens", "4", "--ctx", "256", "--set", "model.chat_template={{ messages }}",
                 LLAMAFAST_PORT="1", LLAMAFAST_API_KEY="secret")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    done = asked("x", str(ROOT / "setup.py"))
    assert done.returncode == 1
    done = asked("x", "none.gguf")
    assert done.returncode == 1
    assert done.stderr.endswith("none.gguf: no such file\n")


WAITS_FOR_A_LINE = """
import readline, signal, threading
from llamafast.cli.talk import end_by
end_by(signal.SIGTERM)
threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)).start()
input("> ")
"""


def test_a_signal_that_interrupts_no_wait_ends_it() -> None:
    """One that another thread gets, as one that comes just before the wait begins."""
    assert Terminal(command=("-c", WAITS_FOR_A_LINE)).ended() == 128 + signal.SIGTERM


@pytest.mark.heavy
def test_a_terminal_that_is_closed_leaves_nothing(tiny_model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    terminal = Terminal(str(tiny_model("tiny-scripted")), "--ctx", "256")
    terminal.until("> ")
    assert [one.name.startswith("llamafast-") for one in tmp_path.iterdir()] == [True]
    os.kill(terminal.pid, signal.SIGHUP)
    assert terminal.ended() == 128 + signal.SIGHUP
    assert list(tmp_path.iterdir()) == []
