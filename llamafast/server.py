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
from llamafast.engine.disk import DiskStore
from llamafast.engine.engine import Engine
from llamafast.engine.load import load_engine, set_echo
from llamafast.engine.placement import placement_of
from llamafast.errors import ConfigError
from llamafast.front import Front, in_thread, read_keys_on_signal, run, warn_of_strangers
from llamafast.hub import resolve_model
from llamafast.listener import Listener

if TYPE_CHECKING:
    from llamafast.media.opened import OpenedMedia

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
    set_echo(verbose)
    run(_serve(config, listener, ring, on_serving))


async def _serve(config: Config, listener: Listener, keys: KeyRing, on_serving: Callable[[Hurry], None] | None) -> None:
    cpus = allowed_cpus()
    leave_to_compute(placement_of(config.model).n_computing)
    front = Front(listener, config.server)
    if isinstance(keys, Keys):
        read_keys_on_signal(keys)
    engine, app = await front.loaded(in_thread(partial(_load, config, listener, keys, front.waits, cpus)))
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
    config: Config, listener: Listener, keys: KeyRing, waits: ClientWaits, cpus: set[int] | None
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


def _advance(bar: tqdm[Any], fraction: float) -> None:
    bar.update(round(100 * fraction) - bar.n)
