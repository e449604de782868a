"""Loads one model in this process and serves it: an Engine, an App, and the front that both stand behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llamafast.api.app import App
from llamafast.api.client_wait import ClientWaits
from llamafast.api.keys import KeyRing, Keys, keys_of
from llamafast.api.origins import Origins
from llamafast.config import Config, ModelConfig
from llamafast.cpus import allowed_cpus, leave_to_compute, on_cpus
from llamafast.engine.devices import encoding_device
from llamafast.engine.disk import DiskStore
from llamafast.engine.engine import Engine
from llamafast.engine.kv_log import KVLog
from llamafast.engine.load import load_engine, set_echo
from llamafast.engine.placement import placement_of
from llamafast.errors import ConfigError
from llamafast.front import Front, in_thread, read_keys_on_signal, run, warn_of_contents, warn_of_strangers
from llamafast.listener import Listener
from llamafast.model_files import projector_packages, resolve_model
from llamafast.traces.opened import open_traces

if TYPE_CHECKING:
    from llamafast.events.publisher import Publisher
    from llamafast.media.opened import OpenedMedia
    from llamafast.traces.exporter import Exporter

logger = logging.getLogger(__name__)

LISTING_SECONDS = 2.0

Hurry = Callable[[], None]


def serve(
    config: Config,
    verbose: bool = False,
    *,
    keys: KeyRing | None = None,
    on_serving: Callable[[Hurry], None] | None = None,
) -> None:
    """Load the model and serve until SIGINT or SIGTERM. ``keys`` are the config's where nobody else knows whose a
    request is; ``on_serving`` is told when requests are answered, and how to end those that are. Raises ConfigError or
    ModelLoadError."""
    listener = Listener(config.server)
    ring = keys_of(config.server) if keys is None else keys
    if isinstance(ring, Keys):
        warn_of_strangers(listener.public_ip, ring)
        warn_of_contents(config.server)
    set_echo(verbose)
    traces = open_traces(config.server)
    events = open_events(config, ring)
    try:
        run(_serve(config, listener, ring, on_serving, events, traces))
    finally:
        if events is not None:
            events.close()
        if traces is not None:
            traces.close()


async def _serve(
    config: Config,
    listener: Listener,
    keys: KeyRing,
    on_serving: Callable[[Hurry], None] | None,
    events: Publisher | None,
    traces: Exporter | None,
) -> None:
    cpus = allowed_cpus()
    leave_to_compute(placement_of(config.model).n_computing)
    if traces is not None:
        traces.start()
    front = Front(listener, config.server, None if traces is None else traces.close)
    if isinstance(keys, Keys):
        read_keys_on_signal(keys)
    log = None if events is None else events.log
    loading = partial(_load, config, listener, keys, front.waits, cpus, log, traces)
    engine, app = await front.loaded(in_thread(loading))
    if events is not None:
        events.start()
        if not engine.info.generates:
            logger.warning("events   none: this model generates nothing, and keeps no prompts")
    with on_cpus(cpus):
        engine.start()
    if on_serving is not None and engine.disk is not None:
        # whoever has a model brought is there at once, and may find its prompt on the disk
        await _listed(engine.disk)
    # What is here now stays: no collection has to look at it again while requests wait.
    gc.freeze()
    await front.serve(app, engine.close, on_serving and partial(on_serving, engine.hurry))


async def _listed(disk: DiskStore) -> None:
    """Until it is known what the folder has, but for no longer than LISTING_SECONDS."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LISTING_SECONDS):
            await asyncio.sleep(0)  # it is about to begin
            while disk.is_listing or disk.has_news:  # noqa: ASYNC110 - threads that wake nobody
                await asyncio.sleep(0.005)


def _load(
    config: Config,
    listener: Listener,
    keys: KeyRing,
    waits: ClientWaits,
    cpus: set[int] | None,
    log: KVLog | None,
    traces: Exporter | None,
) -> tuple[Engine, App]:
    """In a thread. Raises ConfigError or ModelLoadError."""
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"
    path = resolve_model(config.model.source)
    loras = [resolve_model(lora.source) for lora in config.model.loras]
    draft = None if config.model.draft_file is None else resolve_model(config.model.draft_file)
    projector = None if config.model.mtmd is None else resolve_model(config.model.mtmd.source)
    media = _open_media(config.model, path, projector, cpus)
    with on_cpus(cpus):
        hidden = not sys.stderr.isatty()
        with tqdm(total=100, desc="loading", unit="%", bar_format=layout, disable=hidden, leave=False) as bar:
            told = partial(_advance, bar)
            engine = load_engine(config, path, told, media and media.encoder, loras, draft, log, projector)
        origins = Origins(config.server, listener.hosts)
        loader = media and media.loader
        app = App(engine, config, keys=keys, origins=origins, waits=waits, media=loader, spans=traces)
    if engine.info.generates:
        told_of_chats = logger.info if app.chat.has_template else logger.warning
        told_of_chats("chat     %s; takes %s", app.chat.summary(), ", ".join(("text", *engine.info.modalities)))
    return engine, app


def open_events(config: Config, keys: KeyRing) -> Publisher | None:
    """Where routers are told of prefixes, if they are. Raises ConfigError."""
    if config.server.kv_events is None:
        return None
    try:
        from llamafast.events.publisher import Publisher
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"server.kv_events needs the package {error.name}: pip install 'llamafast[events]'"
        ) from error
    events = Publisher(config.server.kv_events)
    logger.info("events   %s", ", replays ".join(events.urls))
    if isinstance(keys, Keys) and keys.separate:
        logger.warning(
            "events   none of requests with a key: each key has a part of the cache of its own (server.salt_by_key), "
            "and no router is told of those. Give the router one key without a name, alone in its file, and keep "
            "tenants apart in front of it"
        )
    return events


def _open_media(config: ModelConfig, path: Path, projector: Path | None, cpus: set[int] | None) -> OpenedMedia | None:
    """What the model takes beside text, encoded on the CPUs that compute nothing where there are such. Raises
    ConfigError or ModelLoadError."""
    if (mtmd := config.mtmd) is None or projector is None:
        return None
    if missing := projector_packages():
        raise ConfigError(f"model.mtmd needs the package {missing[0]}: pip install 'llamafast[media]'")
    # the process that encodes is no part of a server without it
    from llamafast.media.opened import open_media

    placement = placement_of(config)
    own = allowed_cpus()
    alone = own is not None and own != cpus
    n_threads = mtmd.threads or (len(own) if own is not None and alone else placement.threads)
    return open_media(
        config,
        mtmd,
        path,
        projector,
        n_threads=n_threads,
        device=encoding_device(config),
        shares_cpus=placement.on_cpu and not alone,
    )


def _advance(bar: tqdm[Any], fraction: float) -> None:
    bar.update(round(100 * fraction) - bar.n)
