"""The process of one model: ``python -m llamafast.pool.child DESCRIPTOR``.

It is what ``llamafast serve`` is for a single model, on a Unix socket. It loads nothing before the parent says that
there is room, answers nobody but the parent, and does not outlive it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import BinaryIO

from llamafast.config import Config, ModelConfig, ModelSource
from llamafast.config_file import parse_config
from llamafast.console import FORMAT, LogWriter
from llamafast.engine.need import memory_need
from llamafast.errors import ConfigError, ModelLoadError
from llamafast.hub import resolve_model
from llamafast.pool.tenants import ToldKeys
from llamafast.pool.wire import Begin, FromChild, Go, Needs, Ready, Refused, line, to_child
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
    lines = connection.makefile("rb")
    begin = _next(lines)
    if not isinstance(begin, Begin):
        return 1
    log = LogWriter()
    log.tell_of_exceptions()

    def tell(message: FromChild) -> None:
        connection.sendall(line(message))

    try:
        config = parse_config(bytes(begin.config))
        assert isinstance(config, Config)
        name = str(config.model.alias).replace("%", "%%")
        log.setFormatter(logging.Formatter(f"{FORMAT.removesuffix('%(message)s')}[{name}] %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[log])
        path, *beside = map(resolve_model, _sources(config.model))
        tell(Needs(_own_bytes() + memory_need(config.model, path, beside)))
        if not isinstance(_next(lines), Go):
            return 1
        threading.Thread(target=_die_with_parent, args=(lines,), name="llamafast-parent", daemon=True).start()
        serve(config, begin.verbose, keys=ToldKeys(begin.secret), on_serving=lambda: tell(Ready()))
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


def _next(lines: BinaryIO) -> Begin | Go | None:
    """None where the parent is gone."""
    told = lines.readline()
    return to_child.decode(told) if told else None


def _die_with_parent(lines: BinaryIO) -> None:
    """The kernel sees to it on Linux alone."""
    lines.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
