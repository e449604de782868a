"""Grammars written and compiled on trial, in processes that can be ended.

Some hundred bytes of schema can keep llguidance busy for hours or make it take all memory, and a thread cannot be
stopped. So a process of its own reads, translates and compiles each new grammar first; the kernel ends it where it
takes too much. Most take some milliseconds: there are processes for these, so that none of them waits for those that
take seconds.
"""

from __future__ import annotations

import atexit
import os
import resource
import select
import signal
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from queue import Empty, LifoQueue
from time import monotonic

from llguidance import LLTokenizer
from msgspec import Struct
from msgspec.json import Decoder, decode, encode

from llamafast.chat.grammar.asked import Ask, Asked, Refusal, written
from llamafast.chat.grammar.compiler import StandIn, grammar_tokenizer
from llamafast.engine.types import Vocabulary
from llamafast.errors import EngineUnavailable

# Of CPU time for one grammar: at first, and for one that takes longer.
QUICK_SECONDS = 0.25
SECONDS = 4.0
# Of time by the clock: what a process that gets hardly any of a CPU, or was stopped, may keep others waiting.
WALL_SECONDS = 120.0
# Of address space; compiling a grammar of average size takes a tenth of it.
BYTES = 1 << 31
# Of each kind.
PROCESSES = 2
# Below the event loop and the compute threads. It takes effect within a session only: Linux divides CPUs among those.
QUICK_NICENESS = 10
NICENESS = 19

TOO_LONG = Refusal("compiling the grammar of this request takes too long")
_TOO_LARGE = Refusal("compiling the grammar of this request takes too much memory")


class Outline(Struct, frozen=True):
    """Of a vocabulary what decides whether a grammar compiles: its size and its control tokens."""

    n_tokens: int
    control: tuple[tuple[int, str], ...]
    ends: tuple[int, ...]


class Trial(Struct):
    """A line to such a process."""

    outline: Outline
    asked: Asked


class Outcome(Struct, omit_defaults=True):
    """Its answer: a grammar in llguidance's JSON, or why there is none."""

    grammar: str = ""
    refusal: Refusal | None = None


class Stopped(Exception):
    """Nobody waits for the outcome any more."""


class Attempt:
    """Some work in a process, which ``stop`` ends from any thread.

    Where the work ends at that moment the process may be at somebody else's by then, who tries it again.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        if process := self.process:
            process.kill()


class Trials:
    """Up to ``PROCESSES`` processes, started as they are needed and kept. Thread-safe."""

    def __init__(self, seconds: float, niceness: int, wall_seconds: float = WALL_SECONDS) -> None:
        self._call = f"answer_lines({seconds}, {niceness})"
        self._wall_seconds = wall_seconds
        self._idle: LifoQueue[subprocess.Popen[bytes] | None] = LifoQueue()
        for _ in range(PROCESSES):
            self._idle.put(None)
        atexit.register(self.close)

    def outcome(self, outline: bytes, ask: Ask, attempt: Attempt | None = None) -> Outcome | None:
        """None: the CPU time that it may take was not enough. ``outline`` is an Outline in JSON.

        Raises Stopped, EngineUnavailable when it is somebody else's doing that there is no answer, and RuntimeError
        when the process ends of itself twice, which is a bug.
        """
        attempt = attempt or Attempt()
        line = b'{"outline":%b,"asked":%b}\n' % (outline, ask.line)
        process = self._idle.get()
        code = 0
        try:
            for _ in range(2):
                # one that was idle may have been killed long ago: that says nothing of the grammar
                process = attempt.process = process or _started(self._call)
                try:
                    answer = b"" if attempt.stopped else _exchanged(process, line, self._wall_seconds)
                except TimeoutError:
                    process.kill()
                    _close(process)
                    process = None
                    raise EngineUnavailable(
                        "compiling the grammar of this request got no time to run in: try again"
                    ) from None
                attempt.process = None
                if answer:
                    return decode(answer, type=Outcome)
                if attempt.stopped:
                    process.kill()
                code, process = _close(process), None
                if attempt.stopped:
                    raise Stopped
                # the kernel's word on the task, or that of what it gave no more memory; any other is somebody else's
                if code == -signal.SIGPROF:
                    return None
                if code == -signal.SIGABRT:
                    return Outcome(refusal=_TOO_LARGE)
            if code < 0:
                raise EngineUnavailable("compiling the grammar of this request was ended from outside: try again")
            raise RuntimeError(f"the process that compiles grammars on trial exited with {code}")
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes that are idle."""
        with suppress(Empty):
            while True:
                if process := self._idle.get_nowait():
                    process.kill()
                    _close(process)


@lru_cache(1)
def quick_trials() -> Trials:
    return Trials(QUICK_SECONDS, QUICK_NICENESS)


@lru_cache(1)
def trials() -> Trials:
    return Trials(SECONDS, NICENESS)


def outline(vocabulary: Vocabulary) -> bytes:
    """An Outline in JSON."""
    ids = range(vocabulary.n_tokens)
    control = [
        (token, vocabulary.piece(token).decode(errors="replace")) for token in ids if vocabulary.is_control(token)
    ]
    return encode(Outline(vocabulary.n_tokens, tuple(control), tuple(vocabulary.eog_tokens())))


def answer_lines(seconds: float, niceness: int) -> None:
    """What such a process does."""
    os.nice(niceness)
    # of the terminal's, which it shares; it ends with its input
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, BYTES)
    decoder = Decoder(Trial)
    for line in sys.stdin.buffer:
        # of CPU time, after which the kernel ends this
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            outcome = _outcome(decoder, line)
        except MemoryError:
            os.abort()
        sys.stdout.buffer.write(encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


def _outcome(decoder: Decoder[Trial], line: bytes) -> Outcome:
    try:
        task = decoder.decode(line)
    except RecursionError:  # it is some levels deeper here than in the request
        return Outcome(refusal=Refusal("a grammar or schema of this request is nested too deeply"))
    found = written(task.asked, _tokenizer(task.outline))
    return Outcome(found) if isinstance(found, str) else Outcome(refusal=found)


def _limit(kind: int, most: int) -> None:
    """At most that; the hard limit stays, as nobody but root may raise it."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


@lru_cache(1)
def _tokenizer(outline: Outline) -> LLTokenizer:
    return grammar_tokenizer(StandIn(outline.n_tokens, dict(outline.control), list(outline.ends)))


def _started(call: str) -> subprocess.Popen[bytes]:
    script = f"import sys; sys.path[:] = {sys.path!r}; from llamafast.chat.grammar.trial import answer_lines; {call}"
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _exchanged(process: subprocess.Popen[bytes], line: bytes, seconds: float) -> bytes:
    """The answer to ``line``, empty where the process ends over it. Raises TimeoutError."""
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink, end = process.stdout.fileno(), process.stdin.fileno(), monotonic() + seconds
    os.set_blocking(sink, False)
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(sink, select.POLLOUT)
    pieces: list[bytes] = []
    left = memoryview(line)
    while not (pieces and pieces[-1].endswith(b"\n")):
        ready = dict(poll.poll(max(0.0, 1e3 * (end - monotonic()))))
        if not ready:
            raise TimeoutError
        if source in ready:
            if not (piece := os.read(source, 1 << 16)):
                return b""
            pieces.append(piece)
        elif sink in ready:
            try:
                left = left[os.write(sink, left) :]
            except BrokenPipeError:
                left = left[:0]
            if not left:
                poll.unregister(sink)
    return b"".join(pieces)


def _close(process: subprocess.Popen[bytes]) -> int:
    """Its exit code, once it has ended."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    return process.wait()
