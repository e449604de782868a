"""The process of one model: ``python -m llamafast.pool.child DESCRIPTOR``.

It is what ``llamafast serve`` is for a single model, on a Unix socket. It loads nothing before the parent says that
there is room, answers nobody but the parent, and does not outlive it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from msgspec.structs import replace

from llamafast.config import Config, FromPretrained, ModelConfig, ModelSource
from llamafast.config_file import parse_config
from llamafast.console import LogWriter, lines_in
from llamafast.engine.fit import LEAST, with_context
from llamafast.engine.load import last_progress
from llamafast.engine.memory import part_of, total_bytes
from llamafast.engine.need import file_bytes, memory_need
from llamafast.errors import ConfigError, ModelLoadError
from llamafast.model_files import resolve_model
from llamafast.pool.tenants import ToldKeys
from llamafast.pool.wire import Begin, End, FromChild, Go, Needs, Progress, Ready, Refused, ToChild, line, to_child
from llamafast.server import serve

_PR_SET_PDEATHSIG = 1
# So often at most the parent is told that the model is nearer.
_PROGRESS_SECONDS = 1.0


def main(descriptor: int) -> int:
    """The process's exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # which is for the parent, to read its keys again
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    # processes that this one starts are not to keep it open
    connection.set_inheritable(False)
    parent = _Parent(connection)
    begin = parent.next()
    if not isinstance(begin, Begin):
        return 1
    log = LogWriter()
    log.tell_of_exceptions()

    def tell(message: FromChild) -> None:
        with suppress(OSError):  # the parent has ended, and with it in a moment this process
            connection.sendall(line(message))

    try:
        config = parse_config(bytes(begin.config))
        assert isinstance(config, Config)
        log.setFormatter(lines_in(config.server.log_format, str(config.model.alias)))
        logging.basicConfig(level=logging.INFO, handlers=[log])
        path, *beside = (_found(source, tell) for source in _sources(config.model))
        model, n_bytes = _weighed(config.model, path, beside, begin)
        config = replace(config, model=model)
        tell(Needs(n_bytes))
        if not isinstance(parent.next(), Go):
            return 1

        loaded = threading.Event()

        def serving(hurry: Callable[[], None]) -> None:
            loaded.set()
            parent.hears(hurry)
            tell(Ready())

        threading.Thread(target=_tell_of_progress, args=(loaded, tell), name="llamafast-progress", daemon=True).start()
        serve(config, begin.verbose, keys=ToldKeys(begin.secret), on_serving=serving)
    except (ConfigError, ModelLoadError) as error:
        tell(Refused(str(error)))
        return 1
    return 0


def _found(source: ModelSource, tell: Callable[[FromChild], None]) -> Path:
    tell(Progress(fetched=isinstance(source, FromPretrained)))
    path = resolve_model(source)
    tell(Progress())
    return path


def _tell_of_progress(loaded: threading.Event, tell: Callable[[FromChild], None]) -> None:
    """Until the model is ``loaded``; nothing while no weights are read and nothing is computed."""
    told = last_progress()
    while not loaded.wait(_PROGRESS_SECONDS):
        if (at := last_progress()) > told:
            told = at
            tell(Progress())


def _weighed(model: ModelConfig, path: Path, beside: list[Path], begin: Begin) -> tuple[ModelConfig, int]:
    """The model with a context as long as its part of the room allows, and what it takes. One that the config says is
    as if all of the machine were for it: others go for it."""
    own = _own_bytes()
    n_beside = sum(file.stat().st_size for file in beside)
    part = part_of(max(0, begin.max_bytes - own), begin.n_models, file_bytes(path, beside))
    draft = beside[-1] if beside and model.has_draft_model else None
    chosen = with_context(model, path, n_beside, here=total_bytes() if model.n_ctx else part, draft=draft)
    need = memory_need(chosen, path, beside, draft)
    if not model.n_ctx and chosen.n_ctx != LEAST:
        # it was laid out, which is more exact
        need = min(need, part)
    return chosen, own + need


def _sources(model: ModelConfig) -> Iterator[ModelSource]:
    """Of the model first, of what drafts last."""
    yield model.source
    for lora in model.loras:
        yield lora.source
    if model.mtmd is not None:
        yield model.mtmd.source
    if model.draft_file is not None:
        yield model.draft_file


def _own_bytes() -> int:
    """What the process has before it has a model."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class _Parent:
    """What the parent says, read by a thread, which ends the process with the parent: the kernel sees to that on Linux
    alone."""

    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("rb")
        self._said: SimpleQueue[ToChild] = SimpleQueue()
        self._serving: Future[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = Future()
        threading.Thread(target=self._read, name="llamafast-parent", daemon=True).start()

    def next(self) -> ToChild:
        return self._said.get()

    def hears(self, hurry: Callable[[], None]) -> None:
        """From now on what runs can be told on this event loop that its time is over, by ``hurry``."""
        self._serving.set_result((asyncio.get_running_loop(), hurry))

    def _read(self) -> None:
        with suppress(OSError):
            while told := self._lines.readline():
                message = to_child.decode(told)
                if isinstance(message, End):
                    # before it serves the signal alone ends it
                    loop, hurry = self._serving.result()
                    with suppress(RuntimeError):  # the loop has ended
                        loop.call_soon_threadsafe(loop.call_later, message.seconds, hurry)
                else:
                    self._said.put(message)
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
