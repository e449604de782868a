"""Builds the Engine and the App and serves them with Granian, in one process and one event loop.

Granian is embedded, so that probes are answered while the model loads, a failure to load is this process's exit code,
and signals are ours: running requests finish before connections close.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import uvloop
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from tqdm import tqdm

from llamafast.api.app import App
from llamafast.api.client_wait import ClientWaits
from llamafast.api.connections import Connections
from llamafast.api.keys import VARIABLE, Keys, keys_of
from llamafast.api.loading import Gate
from llamafast.api.origins import Origins
from llamafast.config import Config, ModelConfig, ServerConfig
from llamafast.cpus import allowed_cpus, leave_to_compute, on_cpus
from llamafast.engine.engine import Engine
from llamafast.engine.load import load_engine, set_echo
from llamafast.engine.placement import placement_of
from llamafast.errors import ConfigError
from llamafast.granian_limits import limits
from llamafast.hub import resolve_model
from llamafast.listener import Listener

if TYPE_CHECKING:
    from llamafast.media.opened import OpenedMedia

T = TypeVar("T")

logger = logging.getLogger(__name__)

# After the drain, for clients that read slowly, not at all, or have sent half a request.
CLOSE_SECONDS = 5.0
STOPPING = (signal.SIGINT, signal.SIGTERM)
# Granian's errors are lines of our log.
GRANIAN_LOG = {"incremental": True, "handlers": {}, "loggers": {"_granian": {"propagate": True}}}


def serve(config: Config, verbose: bool = False) -> None:
    """Load the model and serve until SIGINT or SIGTERM. Raises ConfigError or ModelLoadError."""
    listener = Listener(config.server)
    keys = keys_of(config.server)
    warn_of_strangers(listener.public_ip, keys)
    set_echo(verbose)
    with _interruptible(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, listener, keys))
    logger.info("stopped")


async def _serve(config: Config, listener: Listener, keys: Keys) -> None:
    _end_on_signals(listener)
    _read_keys_on_signal(keys)
    cpus = allowed_cpus()
    leave_to_compute(placement_of(config.model).n_computing)
    waits = ClientWaits(config.server)
    if (port := listener.port) is not None:
        waits.connections = Connections(port, config.server)
        waits.connections.watch()
    gate = Gate(waits, config.server)
    server = Server(
        gate,
        interface=Interfaces.ASGINL,
        websockets=config.server.max_websockets > 0,
        log_level=LogLevels.error,
        log_dictconfig=GRANIAN_LOG,
        **limits(config.server),
        **listener.options,
    )
    server.on_startup(listener.bound)
    loop = asyncio.get_running_loop()
    serving = loop.create_task(server.serve())
    loading = in_thread(partial(_load, config, listener, keys, waits, cpus))
    try:
        await asyncio.wait((serving, loading), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            raise _ended(serving, listener)
        engine, app = loading.result()
    except Exception as error:
        await _close(server, serving, listener)
        if not (serving.done() and loading.done()):
            # Python's own end would wait for what still runs, or take the interpreter away under it
            logger.error("%s", error)
            _leave(listener, 1)
        raise
    stopping = asyncio.Event()
    _stop_on_signals(stopping, listener)
    with on_cpus(cpus):
        engine.start()
    # What is here now stays: no collection has to look at it again while requests wait.
    gc.freeze()
    gate.open(app)
    waiting = loop.create_task(stopping.wait())
    logger.info("serving  %s", listener.url)
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    await _drain(config.server, engine, app, serving, listener)
    await _close(server, serving, listener, app)
    if not serving.done():
        _leave(listener)
    if serving.exception() is not None or not stopping.is_set():
        raise _ended(serving, listener)


def _load(
    config: Config, listener: Listener, keys: Keys, waits: ClientWaits, cpus: set[int] | None
) -> tuple[Engine, App]:
    """In a thread. Raises ConfigError or ModelLoadError."""
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"
    path = resolve_model(config.model.source)
    loras = [resolve_model(lora.source) for lora in config.model.loras]
    draft = config.model.draft_source if "draft-mtp" in (config.model.drafts or ()) else None
    head = None if draft is None else resolve_model(draft)
    media = _open_media(config.model, path, cpus)
    with on_cpus(cpus):
        with tqdm(total=100, desc="loading", unit="%", bar_format=layout, disable=not sys.stderr.isatty()) as bar:
            told = partial(_advance, bar)
            engine = load_engine(config, path, told, media and media.encoder, loras, head)
        origins = Origins(config.server, listener.hosts)
        app = App(engine, config, keys=keys, origins=origins, waits=waits, media=media and media.loader)
    if engine.info.generates:
        source = "GGUF" if config.model.chat_template is None else "config"
        logger.info("chat     template from %s; %s", source, app.chat.summary())
    return engine, app


def _open_media(config: ModelConfig, path: Path, cpus: set[int] | None) -> OpenedMedia | None:
    """What the model takes beside text, encoded on the CPUs that compute nothing where there are such. Raises
    ConfigError or ModelLoadError."""
    if (mtmd := config.mtmd) is None:
        return None
    try:
        from llamafast.media.opened import open_media
    except ModuleNotFoundError as error:
        raise ConfigError(f"model.mtmd needs the package {error.name}: pip install 'llamafast[media]'") from error
    placement = placement_of(config)
    own = allowed_cpus()
    alone = own is not None and own != cpus
    n_threads = mtmd.threads or (len(own) if own is not None and alone else placement.threads)
    return open_media(
        config,
        mtmd,
        path,
        resolve_model(mtmd.source),
        n_threads=n_threads,
        use_gpu=not placement.on_cpu,
        shares_cpus=placement.on_cpu and not alone,
    )


async def _drain(
    config: ServerConfig, engine: Engine, app: App, serving: asyncio.Task[None], listener: Listener
) -> None:
    """Until what runs has finished, or its time is over."""
    delay, seconds = config.drain_delay_seconds, config.drain_seconds
    logger.info("stopping: running requests have %g s to finish; another signal ends them now", delay + seconds)
    leave_after(delay + seconds + CLOSE_SECONDS, listener, code=int(serving.done()))
    app.announce_drain()
    await asyncio.wait((serving,), timeout=delay)
    app.drain()
    await engine.close(seconds)


async def _close(server: Server, serving: asyncio.Task[None], listener: Listener, app: App | None = None) -> None:
    """Take no more connections and wait for those that are open, but for no longer than CLOSE_SECONDS."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            if app is not None:
                await app.closed()
            listener.remove()
            # which Granian would remove, be it another's by then
            server.bind_uds = None
            server.stop()  # type: ignore[no-untyped-call]
            # a timeout ends the wait, not Granian's task: it would wait for its connections all the same
            await asyncio.wait((serving,))


def _ended(serving: asyncio.Task[None], listener: Listener) -> ConfigError:
    """Why Granian has ended, though nobody asked it to."""
    fault = serving.exception()
    # Rust's errors bring their stack along
    reason = str(fault).partition("\n")[0] if fault is not None else "Granian ended by itself"
    return ConfigError(f"server: {listener.url} is not served any more: {reason}")


def warn_of_strangers(public_ip: str | None, keys: Keys) -> None:
    """Tell whoever starts a server that others reach, and that asks for no keys, that it is everybody's."""
    if public_ip is not None and not keys.required:
        logger.warning(
            "keys     none, and %s is no loopback address: whoever reaches it may use this server and read what it "
            "keeps. Set server.api_key_file or %s, or server.host to 127.0.0.1",
            public_ip,
            VARIABLE,
        )


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """What ``work`` comes to in a thread of its own, for which the end of the process does not wait."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="llamafast-loading", daemon=True).start()
    return asyncio.wrap_future(done)


def _stop_on_signals(stopping: asyncio.Event, listener: Listener) -> None:
    """SIGINT and SIGTERM set ``stopping``; another one ends the process as it would end any other."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        _end_on_signals(listener)
        stopping.set()

    for number in STOPPING:
        loop.add_signal_handler(number, stop)


def _end_on_signals(listener: Listener) -> None:
    """From now on SIGINT and SIGTERM end the process, whatever it does. That is for the kernel to do, which spares
    process 1, as a container's first one is: that ends itself."""
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.remove_signal_handler(number)
        if os.getpid() == 1:
            loop.add_signal_handler(number, _leave, listener, 128 + number)
        else:
            signal.signal(number, signal.SIG_DFL)


def _read_keys_on_signal(keys: Keys) -> None:
    """SIGHUP reads the file of keys again, where there is one; otherwise it ends the process, as it does any other."""
    if keys.have_file:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, loop.run_in_executor, None, keys.reload)


def leave_after(seconds: float, listener: Listener, code: int = 0) -> threading.Timer:
    """End the process then, if it has not ended by itself; a number that no clock reaches is never."""
    deadline = threading.Timer(min(seconds, threading.TIMEOUT_MAX), _leave, (listener, code))
    deadline.daemon = True
    deadline.start()
    return deadline


def _leave(listener: Listener, code: int = 0) -> NoReturn:
    """End the process whatever is open or running."""
    listener.remove()
    logger.warning("stopped  and cut what did not end by itself")
    logging.shutdown()
    os._exit(code)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, SIGINT ends the process at once, and no handler of Python's waits for what runs to return."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _advance(bar: tqdm[Any], fraction: float) -> None:
    bar.update(round(100 * fraction) - bar.n)
