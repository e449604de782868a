"""The process's own console: standard streams that may be closed, and a log that never waits for its reader."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
import traceback
from collections import deque
from time import monotonic

FORMAT = "%(asctime)s %(levelname).1s %(message)s"
# Lines that wait for a reader; what comes beyond is dropped and counted.
PENDING_BYTES = 1 << 20
# How long the end of the process waits for the reader of its last lines.
LAST_LINES_SECONDS = 1.0

STDERR = 2


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


class LogWriter(logging.Handler):
    """Writes lines to a descriptor in a thread of its own. A reader that stops, or has gone, costs its lines: they are
    counted, and told as soon as writing goes on."""

    def __init__(self, descriptor: int = STDERR, max_bytes: int = PENDING_BYTES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._max_bytes = max_bytes
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
        self.tell(text)

    def tell(self, text: str) -> None:
        """A line, or several that stay together, behind those of the log and without what marks those."""
        line = text.encode("utf-8", "backslashreplace") + b"\n"
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
                text += b"%d lines of the log were dropped here: nobody read it\n" % n_dropped
            if not self._write(text):
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
