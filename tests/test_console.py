"""A log that never waits for its reader."""

from __future__ import annotations

import json
import logging
import os
import pty
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from llamafast import console
from llamafast.console import LogWriter, lines_in

LINE = "x" * 999


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "", 0, text, None, None)


class Pipe:
    """A pipe, and logs that are written to it. A log's thread lives on: nothing may be left to it that it would write
    to whatever has the descriptor's number by then."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self._is_read = True
        self._logs: list[LogWriter] = []

    def log(self, **options: int) -> LogWriter:
        self._logs.append(LogWriter(self.writer, **options))
        return self._logs[-1]

    def leave(self) -> None:
        """Nobody reads any more."""
        if self._is_read:
            self._is_read = False
            os.close(self.reader)

    def close(self) -> None:
        self.leave()
        for log in self._logs:
            with log._changed:
                assert log._changed.wait_for(lambda log=log: log._idle, 30)
        os.close(self.writer)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def read_until(descriptor: int, end: bytes) -> bytes:
    text = b""
    while not text.endswith(end):
        text += os.read(descriptor, 1 << 20)
    return text


def test_lines_are_written_in_their_order(pipe: Pipe) -> None:
    writer = pipe.log()
    for i in range(100):
        writer.emit(record(f"line {i} \ud800"))
    writer.flush()
    assert os.read(pipe.reader, 1 << 20).decode().splitlines() == [f"line {i} \\ud800" for i in range(100)]


@pytest.mark.parametrize(("terminal", "before"), [("xterm", b"\r\x1b[K"), ("dumb", b"")])
def test_a_line_takes_the_place_of_a_bar(monkeypatch: pytest.MonkeyPatch, terminal: str, before: bytes) -> None:
    """Which stands on a terminal without the end of its line."""
    monkeypatch.setenv("TERM", terminal)
    screen, descriptor = pty.openpty()
    writer = LogWriter(descriptor)
    os.write(descriptor, b"\rloading   0%| ")
    writer.emit(record("model"))
    writer.flush()
    assert read_until(screen, b"\n") == b"\rloading   0%| " + before + b"model\r\n"
    os.close(descriptor)
    os.close(screen)


def test_a_reader_that_goes_while_it_is_waited_for(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise OSError("gone")

    os.set_blocking(pipe.writer, False)
    writer = pipe.log()
    with monkeypatch.context() as patch:
        patch.setattr(console, "select", SimpleNamespace(select=gone))
        for _ in range(200):
            writer.emit(record(LINE))
        writer.flush()
    assert writer._n_dropped > 0
    os.set_blocking(pipe.reader, False)
    os.read(pipe.reader, 1 << 20)
    writer.emit(record("again"))
    writer.flush()
    assert os.read(pipe.reader, 1 << 20).endswith(b" were dropped here: nobody read it\n")


def test_lines_of_json_alone(pipe: Pipe) -> None:
    """What was dropped is told in one too."""
    os.set_blocking(pipe.writer, False)
    writer = pipe.log(max_bytes=100_000)
    writer.setFormatter(lines_in("json"))
    for _ in range(2):
        for _ in range(500):
            writer.emit(record(LINE))
        time.sleep(0.05)
    assert writer._n_dropped > 0
    text = b""
    while b"nobody read it" not in text or not text.endswith(b"\n"):
        text += os.read(pipe.reader, 1 << 20)
    assert {json.loads(line)["level"] for line in text.splitlines()} == {"info", "error"}


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stops_costs_its_lines(pipe: Pipe, blocking: bool) -> None:
    os.set_blocking(pipe.writer, blocking)
    writer = pipe.log(max_bytes=100_000)
    began = time.monotonic()
    for _ in range(2):
        for _ in range(500):
            writer.emit(record(LINE))
        time.sleep(0.05)  # the writer is stuck with more than a pipe holds: what follows finds the room full
    assert time.monotonic() - began < 5
    writer.emit(record("the last one"))
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(read_until(pipe.reader, b"again\n")))
    reader.start()
    writer.flush()
    writer.emit(record("again"))
    reader.join(30)
    lines = received[0].decode().splitlines()
    told = [line for line in lines if "dropped" in line]
    n_dropped = sum(int(line.split()[0]) for line in told)
    assert n_dropped > 500
    assert lines.count(LINE) + lines.count("the last one") + n_dropped == 1001
    assert lines[-2:] == [told[-1], "again"]


def test_a_reader_that_has_gone(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = pipe.log()
    pipe.leave()
    writer.emit(record("lost"))
    writer.flush()
    assert writer._n_dropped == 1


def test_the_end_does_not_wait_for_a_reader(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LAST_LINES_SECONDS", 0.05)
    writer = pipe.log()
    for _ in range(500):
        writer.emit(record(LINE))
    began = time.monotonic()
    writer.flush()
    assert time.monotonic() - began < 5


def test_a_line_says_when_with_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-5:30")
    time.tzset()
    try:
        one = record("100 % done")
        one.created = 1764493302.5
        assert lines_in("text").format(one) == "2025-11-30 14:31:42.500+05:30 I 100 % done"
        assert lines_in("text", "a%d").format(one) == "2025-11-30 14:31:42.500+05:30 I [a%d] 100 % done"
        told = json.loads(lines_in("json", "a").format(one))
        assert told == {
            "time": "2025-11-30T14:31:42.500+05:30", "level": "info", "message": "100 % done", "server": "a",
        }  # fmt: skip
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_line_of_json_has_the_fields_and_the_traceback(pipe: Pipe) -> None:
    writer = pipe.log()
    writer.setFormatter(lines_in("json"))
    one = record("request %s")
    one.args, one.fields = ("id=x",), {"id": "x", "stream": True, "total_ms": 1.5}
    writer.emit(one)
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        writer.emit(logging.LogRecord("name", logging.ERROR, "", 0, "broken", None, (type(error), error, None)))
    writer.tell("llamafast: \ud800 no such file\nat all")
    writer.flush()
    first, second, third = map(json.loads, os.read(pipe.reader, 1 << 20).decode().splitlines())
    assert (first["message"], first["id"], first["stream"], first["total_ms"]) == ("request", "x", True, 1.5)
    assert (second["level"], second["message"]) == ("error", "broken")
    assert "ValueError: a\nb" in second["exception"]
    assert third["message"] == "llamafast: \ud800 no such file\nat all"
