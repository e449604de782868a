"""Grammars compiled on trial, in processes that can be ended.

Some hundred bytes of schema can keep llguidance busy for hours or make it take all memory, and a thread cannot be
stopped. So a process of its own compiles each new grammar first; the kernel ends it where it takes too much.
"""

from __future__ import annotations

import atexit
import math
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache
from queue import Empty, LifoQueue
from time import process_time

from llguidance import LLTokenizer
from msgspec import Struct
from msgspec.json import Decoder, encode

from llamafast.chat.compiler import StandIn, compiled, grammar_tokenizer
from llamafast.engine.types import Vocabulary

# Of CPU time for one grammar; the kernel counts whole ones.
SECONDS = 4
# Of address space; compiling a grammar of average size takes a tenth of it.
BYTES = 1 << 31
PROCESSES = 4
# Below the event loop and the compute threads. It takes effect within a session only: Linux divides CPUs among those.
NICENESS = 19


class Outline(Struct, frozen=True):
    """Of a vocabulary what decides whether a grammar compiles: its size and its control tokens."""

    n_tokens: int
    control: tuple[tuple[int, str], ...]
    ends: tuple[int, ...]


class Task(Struct):
    """A line to such a process; the answer is an empty line. ``grammar`` is llguidance's JSON."""

    grammar: str
    outline: Outline


class Trials:
    """Up to ``PROCESSES`` processes, started as they are needed and kept. Thread-safe."""

    def __init__(self, seconds: int = SECONDS) -> None:
        self._seconds = seconds
        self._idle: LifoQueue[subprocess.Popen[bytes] | None] = LifoQueue()
        for _ in range(PROCESSES):
            self._idle.put(None)
        atexit.register(self.close)

    def endured(self, task: Task) -> bool:
        """Whether compiling a grammar comes to an end, be it a refusal.

        Raises RuntimeError when a process ends of itself, which is a bug.
        """
        process = self._idle.get()
        try:
            process = process or _started(self._seconds)
            if _asked(process, task):
                return True
            code = process.wait()
            process = None
            if code < 0:
                return False
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
                    process.wait()


@lru_cache(1)
def trials() -> Trials:
    """Those of this process."""
    return Trials()


def outline(vocabulary: Vocabulary) -> Outline:
    ids = range(vocabulary.n_tokens)
    control = [
        (token, vocabulary.piece(token).decode(errors="replace")) for token in ids if vocabulary.is_control(token)
    ]
    return Outline(vocabulary.n_tokens, tuple(control), tuple(vocabulary.eog_tokens()))


def compile_lines(seconds: int) -> None:
    """What such a process does."""
    os.nice(NICENESS)
    # of the terminal's, which it shares; it ends with its input
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    decoder = Decoder(Task)
    for line in sys.stdin.buffer:
        task = decoder.decode(line)
        tokenizer = _tokenizer(task.outline)
        limit = math.ceil(process_time()) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            compiled(tokenizer, task.grammar)
        except MemoryError:
            os.abort()
        print(flush=True)


@lru_cache(1)
def _tokenizer(outline: Outline) -> LLTokenizer:
    return grammar_tokenizer(StandIn(outline.n_tokens, dict(outline.control), list(outline.ends)))


def _started(seconds: int) -> subprocess.Popen[bytes]:
    call = f"from llamafast.chat.trial import compile_lines; compile_lines({seconds})"
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {call}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _asked(process: subprocess.Popen[bytes], task: Task) -> bool:
    """Whether there is an answer; where the process ends over the task, its pipes are closed."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(encode(task) + b"\n")
        process.stdin.flush()
        if process.stdout.readline():
            return True
    _close(process)
    return False


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
