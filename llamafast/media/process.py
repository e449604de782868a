"""The server's end of the process for media: starts it, gives it jobs, starts it again when it dies."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from llamafast.engine.media import MediaKind
from llamafast.errors import (
    EngineFailure,
    InvalidMedia,
    LlamafastError,
    ModelLoadError,
    ProjectorFailure,
    ShuttingDown,
)
from llamafast.media.anonymous_file import AnonymousFile, mapped
from llamafast.media.encode_job import EncodeJob
from llamafast.media.layouts import Layouts, refused
from llamafast.media.sound_pieces import CutSamples
from llamafast.media.wire import (
    Begin,
    Chunk,
    CutSound,
    Done,
    Drop,
    Encode,
    Failed,
    FromChild,
    LaidOut,
    LayOut,
    Ready,
    Refused,
    Rows,
    SoundCut,
    Wire,
)

logger = logging.getLogger(__name__)

# Between two starts of a process that dies, doubled each time until one lives for long enough.
FIRST_PAUSE, LONGEST_PAUSE, LONG_LIFE = 0.1, 1.0, 10.0


class MediaProcess:
    """``start`` and ``close`` belong to one thread, all else may be called by any.

    Of the jobs to encode it has one at a time, so that those behind it can be taken back, and outlive it.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._layouts = Layouts()
        self._waiting: deque[EncodeJob] = deque()
        self._encoding: tuple[int, EncodeJob] | None = None
        self._wire: Wire | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._closing = False
        self._paused = False
        self.on_busy: Callable[[], None] = _nobody
        self.counts = {"media_encodes": 0, "media_encode_seconds": 0.0, "media_failures": 0, "media_restarts": 0}

    def start(self) -> Ready:
        """Returns once it can encode. Raises ModelLoadError."""
        ready: concurrent.futures.Future[Ready] = concurrent.futures.Future()
        # whose thread it is that starts the process: the kernel ends that when the thread has ended
        threading.Thread(target=self._run, args=(ready,), name="llamafast-media", daemon=True).start()
        return ready.result()

    def close(self) -> None:
        """End it, whatever it does; those who wait for it are told."""
        with self._lock:
            self._closing = True
            wire, child = self._wire, self._child
        if child is not None:
            _signal_all(child, signal.SIGKILL)
        if wire is not None:
            wire.close()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        child = self._child
        return None if child is None else child.pid

    @property
    def busy(self) -> bool:
        """Whether it has something to do, and is there to do it."""
        return self._wire is not None and bool(self._layouts or self._encoding)

    def pause(self) -> None:
        """Stop it wherever it is."""
        self._signal(signal.SIGSTOP, True)

    def resume(self) -> None:
        self._signal(signal.SIGCONT, False)

    def _signal(self, number: signal.Signals, paused: bool) -> None:
        with self._lock:
            if self._paused != paused and self._wire is not None and self._child is not None:
                _signal_all(self._child, number)
                self._paused = paused

    def lay_out(self, file: AnonymousFile, kind: MediaKind, low_detail: bool) -> concurrent.futures.Future[list[Chunk]]:
        """How a medium stands in a prompt. Raises InvalidMedia or EngineFailure in the future."""
        return self._ask(LayOut(job=next(self._numbers), kind=kind, low_detail=low_detail), file)

    def cut(self, file: AnonymousFile, most_seconds: float) -> concurrent.futures.Future[CutSamples | None]:
        """The samples of a sound in pieces of ``most_seconds`` at most, None for one that is no longer. Raises
        InvalidMedia or EngineFailure in the future."""
        number = next(self._numbers)
        return self._ask(CutSound(job=number, kind="audio", low_detail=False, most_seconds=most_seconds), file)

    def _ask(self, message: LayOut, file: AnonymousFile) -> concurrent.futures.Future[Any]:
        with self._lock:
            if self._closing:
                return refused(ShuttingDown())
            done = self._layouts.add(message, file)
            self._send(message, file)
        self.on_busy()
        return done

    def drop(self, asked: concurrent.futures.Future[Any]) -> None:
        """Whoever waited for this has left: it comes to an end soon, unlooked at where it has not begun."""
        with self._lock:
            if (job := self._layouts.leave(asked)) is not None:
                self._send(Drop(job))

    def encode(self, job: EncodeJob) -> None:
        """Queue a job."""
        with self._lock:
            closing = self._closing
            if not closing:
                self._waiting.append(job)
                self._next()
        if closing:
            job.on_end(ShuttingDown())
        self.on_busy()

    def take_back(self, job: EncodeJob) -> bool:
        """Whether a job was still waiting, and never will be done now."""
        with self._lock:
            if job not in self._waiting:
                return False
            self._waiting.remove(job)
            return True

    def _send(self, message: LayOut | Encode | Drop, *files: AnonymousFile) -> None:
        """Where the process is gone its reader finds out, and sends what is to be sent again."""
        if self._wire is not None:
            with suppress(OSError):
                self._wire.send(message, [file.descriptor for file in files])

    def _next(self) -> None:
        """With the lock: let the first job that waits be encoded, where none is."""
        if self._encoding is None and self._waiting and self._wire is not None:
            job = self._waiting.popleft()
            number = next(self._numbers)
            self._encoding = number, job
            self._send(Encode(job=number, kind=job.kind, low_detail=job.low_detail, there=job.there), job.file)

    def _spawn(self) -> Ready:
        ours, its = socket.socketpair()
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "llamafast.media.child", str(its.fileno())],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                # a signal of the terminal's is for the server, which still drains
                process_group=0,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
        wire = Wire(ours, FromChild)
        with self._lock:
            self._child = child
            closing = self._closing
        with suppress(OSError):
            wire.send(self._begin)
        answer = None if closing else wire.receive()
        if answer is not None and isinstance(ready := answer[0], Ready):
            with self._lock:
                self._wire, self._paused = wire, False
                if self._closing:  # meanwhile
                    child.kill()
            return ready
        wire.close()
        child.kill()
        code = child.wait()
        reason = answer[0].reason if answer is not None and isinstance(answer[0], Refused) else f"it ended with {code}"
        raise ModelLoadError(f"model.mtmd: {reason}")

    def _run(self, ready: concurrent.futures.Future[Ready]) -> None:
        """The thread of the reader: starts the process, hands out what comes, and starts it again."""
        try:
            ready.set_result(self._spawn())
        except Exception as error:
            ready.set_exception(error)
            return
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            assert self._wire is not None
            while (received := self._wire.receive()) is not None:
                try:
                    self._take(*received)
                except Exception:
                    logger.exception("an answer of the process for media was of no use")
                    self._failed(getattr(received[0], "job", 0), "its answer was of no use", False)
                finally:
                    for descriptor in received[1]:
                        os.close(descriptor)
            if not self._after_death():
                return
            pause = FIRST_PAUSE if time.monotonic() - began > LONG_LIFE else min(2 * pause, LONGEST_PAUSE)
            while True:
                time.sleep(pause)
                try:
                    self._spawn()
                    break
                except (ModelLoadError, OSError) as error:
                    if self._closing:
                        self._end_all(ShuttingDown())
                        return
                    logger.error("cannot start the process for media again: %s", error)
                    self._end_all(EngineFailure("media cannot be encoded now"))
                    pause = min(2 * pause, LONGEST_PAUSE)
            self._resume()

    def _take(self, message: object, descriptors: list[int]) -> None:
        match message:
            case LaidOut(job, chunks):
                self._tell(job, chunks)
            case SoundCut(job, rate, ends):
                self._tell(job, CutSamples(rate, tuple(ends), mapped(descriptors[0])) if ends else None)
            case Rows(job, chunk):
                self._rows(job, chunk, descriptors)
            case Done(job, seconds):
                self.counts["media_encodes"] += 1
                self.counts["media_encode_seconds"] += seconds
                self._finish(job, None)
            case Failed(job, text, invalid):
                self._failed(job, text, invalid)

    def _tell(self, job: int, answer: list[Chunk] | CutSamples | None) -> None:
        with self._lock:
            told = self._layouts.tell(job, answer)
        if told is not None:
            told()

    def _rows(self, job: int, chunk: int, descriptors: list[int]) -> None:
        if (encoding := self._encoding) is None or encoding[0] != job:
            return
        try:
            encoding[1].on_rows(chunk, mapped(descriptors[0]))
        except Exception:  # out of descriptors or memory, or other rows than were laid out
            logger.exception("rows of media could not be taken")
            self._finish(job, ProjectorFailure(encoding[1].kind))

    def _failed(self, job: int, text: str, invalid: bool) -> None:
        if not invalid:
            logger.error("a medium could not be encoded: %s", text)
        self.counts["media_failures"] += 1
        with self._lock:
            told = self._layouts.refuse(job, text if invalid else None)
        if told is not None:
            told()
        elif (encoding := self._encoding) is not None and encoding[0] == job:
            self._finish(job, InvalidMedia(text) if invalid else ProjectorFailure(encoding[1].kind))

    def _finish(self, job: int, error: LlamafastError | None) -> None:
        with self._lock:
            encoding = self._encoding
            if encoding is None or encoding[0] != job:
                return
            self._encoding = None
            self._next()
        encoding[1].on_end(error)

    def _after_death(self) -> bool:
        """The process is gone: what it was encoding has failed. Whether another one is to be started."""
        with self._lock:
            wire, self._wire = self._wire, None
            encoding, self._encoding = self._encoding, None
            closing = self._closing
            child = self._child
        assert wire is not None
        assert child is not None
        wire.close()
        _signal_all(child, signal.SIGKILL)
        code = child.wait()
        if encoding is not None and not closing and self._layouts and not encoding[1].again:
            # what was being laid out may be to blame
            encoding[1].again = True
            with self._lock:
                self._waiting.appendleft(encoding[1])
        elif encoding is not None:
            self.counts["media_failures"] += 1
            encoding[1].on_end(ShuttingDown() if closing else ProjectorFailure(encoding[1].kind))
        if closing:
            self._end_all(ShuttingDown())
            return False
        self.counts["media_restarts"] += 1
        logger.error("the process for media ended with %d, and is started again", code)
        return True

    def _resume(self) -> None:
        """Give a new process what waits."""
        with self._lock:
            failed = self._layouts.again(self._send)
            self._next()
        self.on_busy()
        for told in failed:
            told()

    def _end_all(self, error: LlamafastError) -> None:
        with self._lock:
            told = self._layouts.refuse_all(error)
            jobs, self._waiting = self._waiting, deque()
        for tell in told:
            tell()
        for job in jobs:
            job.on_end(error)


def _signal_all(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """The process, and an ffmpeg that it may have started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _nobody() -> None:
    """Nobody is to be told."""
