"""The process's own console: standard streams that may be closed, and a log that never waits for its reader."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from time import monotonic, time

# Lines that wait for a reader; what comes beyond is dropped and counted.
PENDING_BYTES = 1 << 20
# How long the end of the process waits for the reader of its last lines.
LAST_LINES_SECONDS = 1.0

STDERR = 2
# To the beginning of the terminal's line, and away with what stands there.
OVER_BAR = b"\r\x1b[K"


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGINT ends the process at once, and no handler of Python's waits for what runs to return."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def open_standard_streams() -> None:
    """Give a process that was started without standard streams streams to nowhere.

    Otherwise the next files and sockets get their numbers, and what C code writes to stderr goes to a client.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    # Python has set those to None
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


class TextLines(logging.Formatter):
    """``2026-11-30 09:15:02.123+01:00 I message``; ``name`` says whose lines these are."""

    def __init__(self, name: str = "") -> None:
        super().__init__(f"%(asctime)s %(levelname).1s {f'[{name}] '.replace('%', '%%') if name else ''}%(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _local(record.created, " ")

    def wrapped(self, text: str) -> str:
        """What is no record, as a line."""
        return text


class JsonLines(logging.Formatter):
    """An object a line: ``time`` (RFC 3339), ``level``, ``message``, ``server`` where ``name`` says whose lines these
    are, ``exception``, and the ``fields`` that a record has, which a message does not repeat."""

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        message = record.getMessage() if fields is None else str(record.msg).partition(" ")[0]
        told = {"time": _local(record.created, "T"), "level": record.levelname.lower(), "message": message}
        if self._name:
            told["server"] = self._name
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps({**told, **(fields or {})})

    def wrapped(self, text: str) -> str:
        """What is no record, as a line."""
        return json.dumps({"time": _local(time(), "T"), "level": "error", "message": text})


Lines = TextLines | JsonLines


def lines_in(log_format: str, name: str = "") -> Lines:
    """What ``server.log_format`` says."""
    return JsonLines(name) if log_format == "json" else TextLines(name)


def _local(seconds: float, between: str) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(between, "milliseconds")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace") + b"\n"


class LogWriter(logging.Handler):
    """Writes lines to a descriptor in a thread of its own. A reader that stops, or has gone, costs its lines: they are
    counted, and told as soon as writing goes on. On a terminal they take the place of a bar, which ends no line."""

    def __init__(self, descriptor: int = STDERR, max_bytes: int = PENDING_BYTES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._over_bar = OVER_BAR if os.isatty(descriptor) and os.environ.get("TERM", "dumb") != "dumb" else b""
        self._lines: deque[bytes] = deque()
        self._n_bytes = 0
        self._n_dropped = 0
        self._idle = True
        self._changed = threading.Condition()
        threading.Thread(target=self._write_lines, name="llamafast-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        self._put(_encoded(text))

    def tell(self, text: str) -> None:
        """A line, or several that stay together, behind those of the log and, in text, without what marks those."""
        self._put(self._line(text))

    def _line(self, text: str) -> bytes:
        """What is no record, in the log's form."""
        return _encoded(self.formatter.wrapped(text) if isinstance(self.formatter, Lines) else text)

    def _put(self, line: bytes) -> None:
        with self._changed:
            if self._n_bytes + len(line) > self._max_bytes:
                self._n_dropped += 1
                return
            self._lines.append(line)
            self._n_bytes += len(line)
            self._idle = False
            self._changed.notify_all()

    def tell_of_exceptions(self) -> None:
        """Tracebacks of exceptions that nobody catches become lines too, instead of waiting for the reader."""

        def tell(error: BaseException | None) -> None:
            self.tell("".join(traceback.format_exception(error)).rstrip("\n"))

        sys.excepthook = lambda kind, error, trace: tell(error)
        threading.excepthook = lambda arguments: tell(arguments.exc_value)

    def flush(self) -> None:
        """Until all is written, but not for long."""
        until = monotonic() + LAST_LINES_SECONDS
        with self._changed:
            while not self._idle and (rest := until - monotonic()) > 0:
                self._changed.wait(rest)

    def _write_lines(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._idle = True
                    self._changed.notify_all()
                    self._changed.wait()
                n_lines, text = len(self._lines), b"".join(self._lines)
                n_dropped, self._n_dropped = self._n_dropped, 0
                self._lines.clear()
                self._n_bytes = 0
            if n_dropped:
                text += self._line(f"{n_dropped} lines of the log were dropped here: nobody read it")
            if not self._write(self._over_bar + text):
                with self._changed:
                    self._n_dropped += n_dropped + n_lines

    def _write(self, text: bytes) -> bool:
        """Whether there is a reader."""
        rest, full = memoryview(text), False
        while rest:
            try:
                if full:
                    select.select([], [self._descriptor], [])
                rest, full = rest[os.write(self._descriptor, rest) :], False
            except BlockingIOError:
                full = True
            except OSError:
                return False
        return True
