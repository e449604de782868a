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


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            assert end == ends[0]


def read_until(descriptor: int, end: bytes) -> bytes:
    text = b""
    while not text.endswith(end):
        text += os.read(descriptor, 1 << 20)
    return text


def test_lines_are_written_in_their_order(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    for i in range(100):
        writer.emit(record(f"line {i} \ud800"))
    writer.flush()
    assert os.read(pipe[0], 1 << 20).decode().splitlines() == [f"line {i} \\ud800" for i in range(100)]


def test_a_reader_that_goes_while_it_is_waited_for(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise OSError("gone")

    os.set_blocking(pipe[1], False)
    writer = LogWriter(pipe[1])
    with monkeypatch.context() as patch:
        patch.setattr("select.select", gone)
        for _ in range(200):
            writer.emit(record(LINE))
        writer.flush()
    assert writer._n_dropped > 0
    os.set_blocking(pipe[0], False)
    os.read(pipe[0], 1 << 20)
    writer.emit(record("again"))
    writer.flush()
    assert os.read(pipe[0], 1 << 20).endswith(b" were dropped here: nobody read it\n")


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_stops_costs_its_lines(pipe: tuple[int, int], blocking: bool) -> None:
    os.set_blocking(pipe[1], blocking)
    writer = LogWriter(pipe[1], max_bytes=100_000)
    began = time.monotonic()
    for _ in range(2):
        for _ in range(500):
            writer.emit(record(LINE))
        time.sleep(0.05)  # the writer is stuck with more than a pipe holds: what follows finds the room full
    assert time.monotonic() - began < 5
    writer.emit(record("the last one"))
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(read_until(pipe[0], b"again\n")))
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


def test_a_reader_that_has_gone(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(pipe[1])
    os.close(pipe[0])
    writer.emit(record("lost"))
    writer.flush()
    assert writer._n_dropped == 1


def test_the_end_does_not_wait_for_a_reader(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LAST_LINES_SECONDS", 0.05)
    writer = LogWriter(pipe[1])
    for _ in range(500):
        writer.emit(record(LINE))
    began = time.monotonic()
    writer.flush()
    assert time.monotonic() - began < 5
