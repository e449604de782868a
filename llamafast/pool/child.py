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
from queue import SimpleQueue

from llamafast.config import Config, ModelConfig, ModelSource
from llamafast.config_file import parse_config
from llamafast.console import FORMAT, LogWriter
from llamafast.engine.need import memory_need
from llamafast.errors import ConfigError, ModelLoadError
from llamafast.hub import resolve_model
from llamafast.pool.tenants import ToldKeys
from llamafast.pool.wire import Begin, End, FromChild, Go, Needs, Ready, Refused, ToChild, line, to_child
from llamafast.server import serve

_PR_SET_PDEATHSIG = 1


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
        name = str(config.model.alias).replace("%", "%%")
        log.setFormatter(logging.Formatter(f"{FORMAT.removesuffix('%(message)s')}[{name}] %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[log])
        path, *beside = map(resolve_model, _sources(config.model))
        tell(Needs(_own_bytes() + memory_need(config.model, path, beside)))
        if not isinstance(parent.next(), Go):
            return 1

        def serving(hurry: Callable[[], None]) -> None:
            parent.hears(hurry)
            tell(Ready())

        serve(config, begin.verbose, keys=ToldKeys(begin.secret), on_serving=serving)
    except (ConfigError, ModelLoadError) as error:
        tell(Refused(str(error)))
        return 1
    return 0


def _sources(model: ModelConfig) -> Iterator[ModelSource]:
    """Of the model first."""
    yield model.source
    for lora in model.loras:
        yield lora.source
    if model.mtmd is not None:
        yield model.mtmd.source


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
