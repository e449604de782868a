"""What every server process has in front: Granian on an event loop, signals that are ours, and an end.

Granian is embedded, so that probes are answered while models load, and running requests finish before connections
close.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import uvloop
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server

from llamafast.api.client_wait import ClientWaits
from llamafast.api.connections import Connections
from llamafast.api.http import Receive, Scope, Send
from llamafast.api.keys import Keys
from llamafast.api.loading import Gate
from llamafast.config import KEY_VARIABLE, ServerConfig
from llamafast.console import interruptible
from llamafast.errors import ConfigError
from llamafast.granian_limits import limits
from llamafast.listener import Listener
from llamafast.systemd import Service

T = TypeVar("T")

logger = logging.getLogger(__name__)

# After the drain, for clients that read slowly, not at all, or have sent half a request.
CLOSE_SECONDS = 5.0
STOPPING = (signal.SIGINT, signal.SIGTERM)
# Granian's errors are lines of our log.
GRANIAN_LOG = {"incremental": True, "handlers": {}, "loggers": {"_granian": {"propagate": True}}}


class Served(Protocol):
    """An application, and how it comes to its end."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def is_alive(self) -> bool:
        """Whether nothing stands still that should not: else it had better be started again."""

    def announce_drain(self) -> None:
        """Probes tell that new requests should go elsewhere; all that come are served as before."""

    def drain(self) -> None:
        """Close every WebSocket when what runs on it is done."""

    async def closed(self) -> None:
        """Until no WebSocket is open."""


class Front:
    """Listens from the start: until an application is there, ``gate`` answers. ``beside`` removes what else the server
    has made, where it has to end without ``finally``; a connection takes ``n_descriptors``. On an event loop."""

    def __init__(
        self,
        listener: Listener,
        config: ServerConfig,
        beside: Callable[[], None] | None = None,
        n_descriptors: int = 1,
    ) -> None:
        self._listener = listener
        self._remove = partial(_remove, listener, beside)
        self._config = config
        self._stopping = asyncio.Event()
        self._service = Service()
        _end_on_signals(self._remove)
        if self._service.is_heard:
            # no terminal has closed: it is asked for a reload
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, logger.warning, "keys     are in no file that could be read again")
        self.waits = ClientWaits(config)
        if (port := listener.port) is not None:
            self.waits.connections = Connections(port, config)
            self.waits.connections.watch()
        self._gate = Gate(self.waits, config)
        self._server = Server(
            self._gate,
            interface=Interfaces.ASGINL,
            websockets=config.max_websockets > 0,
            log_level=LogLevels.error,
            log_dictconfig=GRANIAN_LOG,
            **limits(config, n_descriptors),
            **listener.options,
        )
        self._server.on_startup(listener.bound)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve())

    async def loaded(self, loading: asyncio.Future[T]) -> T:
        """What ``loading`` comes to, while probes are answered. Raises what it raises, or ConfigError."""
        try:
            await asyncio.wait((self._serving, loading), return_when=asyncio.FIRST_COMPLETED)
            if self._serving.done():
                raise self._ended()
            return loading.result()
        except Exception as error:
            await self._close()
            if not (self._serving.done() and loading.done()):
                # Python's own end would wait for what still runs, or take the interpreter away under it
                logger.error("%s", error)
                _leave(self._remove, 1)
            raise

    async def serve(
        self,
        app: Served,
        finish: Callable[[float], Awaitable[None]],
        on_serving: Callable[[], None] | None = None,
    ) -> None:
        """Until a signal, and then until requests have ended or their time is over: ``finish`` waits for them, for so
        many seconds. ``on_serving`` is called once requests are answered. Raises ConfigError where Granian ends by
        itself."""
        self._stop_on_signals()
        self._gate.open(app)
        waiting = asyncio.get_running_loop().create_task(self._stopping.wait())
        logger.info("serving  %s", self._listener.url)
        self._service.tell(f"READY=1\nSTATUS=serving {self._listener.url}")
        watching = asyncio.get_running_loop().create_task(self._service.watch(app.is_alive))
        if on_serving is not None:
            on_serving()
        await asyncio.wait((self._serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        self._service.tell("STOPPING=1")
        await self._drain(app, finish)
        await self._close(app)
        watching.cancel()
        if not self._serving.done():
            _leave(self._remove)
        if self._serving.exception() is not None or not self._stopping.is_set():
            raise self._ended()

    async def _drain(self, app: Served, finish: Callable[[float], Awaitable[None]]) -> None:
        delay, seconds = self._config.drain_delay_seconds, self._config.drain_seconds
        if delay or self.waits.any_open:
            logger.info("stopping: running requests have %g s to finish; another signal ends them now", delay + seconds)
        else:
            logger.info("stopping")
        leave_after(delay + seconds + CLOSE_SECONDS, self._remove, code=int(self._serving.done()))
        app.announce_drain()
        await asyncio.wait((self._serving,), timeout=delay)
        app.drain()
        await finish(seconds)

    async def _close(self, app: Served | None = None) -> None:
        """Take no more connections and wait for those that are open, but for no longer than CLOSE_SECONDS."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if app is not None:
                    await app.closed()
                self._listener.remove()
                # which Granian would remove, be it another's by then
                self._server.bind_uds = None
                self._server.stop()  # type: ignore[no-untyped-call]
                # a timeout ends the wait, not Granian's task: it would wait for its connections all the same
                await asyncio.wait((self._serving,))

    def _ended(self) -> ConfigError:
        """Why Granian has ended, though nobody asked it to."""
        fault = self._serving.exception()
        # Rust's errors bring their stack along
        reason = str(fault).partition("\n")[0] if fault is not None else "Granian ended by itself"
        return ConfigError(f"server: {self._listener.url} is not served any more: {reason}")

    def _stop_on_signals(self) -> None:
        """SIGINT and SIGTERM stop it; another one ends the process as it would end any other."""
        loop = asyncio.get_running_loop()

        def stop() -> None:
            _end_on_signals(self._remove)
            self._stopping.set()

        for number in STOPPING:
            loop.add_signal_handler(number, stop)


def run(main: Coroutine[Any, Any, None]) -> None:
    """``main`` on an event loop of its own."""
    with interruptible(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
    logger.info("stopped")


def warn_of_strangers(public_ip: str | None, keys: Keys) -> None:
    """Tell whoever starts a server that others reach, and that asks for no keys, that it is everybody's."""
    if public_ip is not None and not keys.required:
        logger.warning(
            "keys     none, and %s is no loopback address: whoever reaches it may use this server and read what it "
            "keeps. Set server.api_key_file or %s, or server.host to 127.0.0.1",
            public_ip,
            KEY_VARIABLE,
        )


def warn_of_contents(config: ServerConfig) -> None:
    """Tell whoever starts a server that writes down what its clients say."""
    if config.content_chars:
        logger.warning(
            "log      has what requests and answers say, up to %d characters of each (server.request_log.content): "
            "whoever reads it reads that",
            config.content_chars,
        )


def in_thread(work: Callable[[], T], name: str = "llamafast-loading") -> asyncio.Future[T]:
    """What ``work`` comes to in a thread of its own, for which the end of the process does not wait."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return asyncio.wrap_future(done)


def _end_on_signals(remove: Callable[[], None]) -> None:
    """From now on SIGINT and SIGTERM end the process, whatever it does. That is for the kernel to do, which spares
    process 1, as a container's first one is: that ends itself."""
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.remove_signal_handler(number)
        if os.getpid() == 1:
            loop.add_signal_handler(number, _leave, remove, 128 + number)
        else:
            signal.signal(number, signal.SIG_DFL)


def read_keys_on_signal(keys: Keys) -> None:
    """SIGHUP reads the file of keys again, where there is one; otherwise it ends the process, as it does any other,
    but for services of systemd."""
    if keys.have_file:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, loop.run_in_executor, None, keys.reload)


def leave_after(seconds: float, remove: Callable[[], None], code: int = 0) -> threading.Timer:
    """End the process then, if it has not ended by itself; a number that no clock reaches is never."""
    deadline = threading.Timer(min(seconds, threading.TIMEOUT_MAX), _leave, (remove, code))
    deadline.daemon = True
    deadline.start()
    return deadline


def _remove(listener: Listener, beside: Callable[[], None] | None) -> None:
    listener.remove()
    if beside is not None:
        beside()


def _leave(remove: Callable[[], None], code: int = 0) -> NoReturn:
    """End the process whatever is open or running."""
    remove()
    logger.warning("stopped  and cut what did not end by itself")
    logging.shutdown()
    os._exit(code)
