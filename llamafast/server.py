"""Builds the Engine and the App and serves them with Granian, in one process and one event loop.

Granian is embedded, so that the model loads before the socket opens, a failure to load is this process's exit code, and
signals are ours: running requests finish before connections close.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from typing import Any

import uvloop
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from tqdm import tqdm

from llamafast.api.app import App
from llamafast.config import Config
from llamafast.engine.engine import Engine
from llamafast.engine.load import load_engine, set_echo
from llamafast.errors import ConfigError
from llamafast.hub import resolve_model

logger = logging.getLogger(__name__)

BACKLOG = 2048
MAX_CONNECTIONS = 16384
# For the last frames of WebSockets: nothing runs any more, but a client may read slowly or not at all.
CLOSE_SECONDS = 5.0


def serve(config: Config, verbose: bool = False) -> None:
    """Load the model and serve until SIGINT or SIGTERM. Raises ConfigError or ModelLoadError."""
    _check_address(config)
    set_echo(verbose)
    path = resolve_model(config.model.source)
    with tqdm(total=100, desc="loading", unit="%", bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}") as bar:
        engine = load_engine(config, path, lambda fraction: _advance(bar, fraction))
    app = App(
        engine,
        max_body_bytes=config.max_body_bytes,
        stall_seconds=config.server.stall_seconds,
        request_log=config.server.request_log,
        metrics_aliases=config.server.metrics_aliases,
        max_websockets=config.server.max_websockets,
        websocket_seconds=config.server.websocket_seconds,
        responses=config.responses,
    )
    if engine.info.generates:
        source = "GGUF" if config.model.chat_template is None else "config"
        logger.info("chat     template from %s; %s", source, app.chat.summary())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, engine, app))


async def _serve(config: Config, engine: Engine, app: App) -> None:
    server = Server(
        app,
        address=config.server.host,
        port=config.server.port,
        interface=Interfaces.ASGI,
        backlog=BACKLOG,
        backpressure=MAX_CONNECTIONS,
        websockets=config.server.max_websockets > 0,
        log_level=LogLevels.error,
    )
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)
    engine.start()
    leave_to_compute(engine.compute_threads)
    serving = loop.create_task(server.serve())
    waiting = loop.create_task(stopping.wait())
    logger.info("serving  http://%s:%d/v1", config.server.host, config.server.port)
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    logger.info("stopping: running requests have %g s to finish", config.server.drain_seconds)
    app.drain()
    await engine.close(config.server.drain_seconds)
    with suppress(TimeoutError):
        await asyncio.wait_for(app.closed(), CLOSE_SECONDS)
    if serving.done():
        serving.result()
    else:
        server.stop()  # type: ignore[no-untyped-call]
        await serving


def leave_to_compute(n_threads: int) -> None:
    """Keep this thread, and those it will start, off as many CPUs as the engine computes with.

    Every step wakes the event loop. A wake-up on the CPU that computes takes it away from ggml in the middle of a step:
    with one compute thread on two CPUs, 16 streams of a tiny model lost a tenth of their speed to that. Where no CPU
    is left over, nothing is confined. The engine's threads are older and stay free to move.
    """
    if hasattr(os, "sched_setaffinity"):
        spare = sorted(os.sched_getaffinity(0))[n_threads:]
        if spare:
            os.sched_setaffinity(0, spare)


def _advance(bar: tqdm[Any], fraction: float) -> None:
    bar.update(round(100 * fraction) - bar.n)


def _check_address(config: Config) -> None:
    """Fail before the model loads, not after, when the address cannot be had."""
    host, port = config.server.host, config.server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"server: cannot listen on {host}:{port}: {error.strerror or error}") from error
