"""A log that never waits for its reader."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from llamafast import console
from llamafast.console import LogWriter

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
                assert log._changed.wait_for(lambda log=log: log._idle, 10)
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


def test_a_reader_that_goes_while_it_is_waited_for(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise OSError("gone")

    os.set_blocking(pipe.writer, False)
    writer = pipe.log()
    with monkeypatch.context() as patch:
        patch.setattr("select.select", gone)
        for _ in range(200):
            writer.emit(record(LINE))
        writer.flush()
    assert writer._n_dropped > 0
    os.set_blocking(pipe.reader, False)
    os.read(pipe.reader, 1 << 20)
    writer.emit(record("again"))
    writer.flush()
    assert os.read(pipe.reader, 1 << 20).endswith(b" were dropped here: nobody read it\n")


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
    reader.join(10)
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
