"""Serves several models, each in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llamafast.api.keys import Keys, keys_of
from llamafast.api.origins import Origins
from llamafast.api.responses.store import ResponseStore
from llamafast.api.sse import PING_SECONDS
from llamafast.config import Config, PoolConfig
from llamafast.cpus import allowed_cpus, leave_to_compute
from llamafast.engine.memory import available_bytes, room_of_models
from llamafast.engine.threads import physical_cores
from llamafast.front import Front, in_thread, read_keys_on_signal, run, warn_of_contents, warn_of_strangers
from llamafast.listener import Listener
from llamafast.pool.app import PoolApp
from llamafast.pool.catalogue import Catalogue
from llamafast.pool.children import Child
from llamafast.pool.division import child_config, named, pool_of
from llamafast.pool.events import Events
from llamafast.pool.fleet import Fleet
from llamafast.pool.folder import PrivateFolder
from llamafast.pool.former import FormerFolders, keep_room
from llamafast.pool.member import Member, State
from llamafast.pool.watchdog import Watchdog
from llamafast.traces.opened import open_traces

if TYPE_CHECKING:
    from llamafast.traces.exporter import Exporter

logger = logging.getLogger(__name__)

# Of the memory that is available at start which finished prompts may take, as for one model.
_CACHE_SHARE = 4
_DATABASE = "responses.sqlite"


def serve_pool(config: Config | PoolConfig, verbose: bool = False) -> None:
    """Serve until SIGINT or SIGTERM; one model is a pool of one. Raises ConfigError."""
    config = named(config if isinstance(config, PoolConfig) else pool_of(config))
    listener = Listener(config.server)
    keys = keys_of(config.server)
    warn_of_strangers(listener.public_ip, keys)
    warn_of_contents(config.server)
    traces = open_traces(config.server)
    folder = PrivateFolder()
    try:
        run(_serve(config, listener, keys, folder, traces, verbose))
    finally:
        folder.close()
        if traces is not None:
            traces.close()


async def _serve(
    config: PoolConfig,
    listener: Listener,
    keys: Keys,
    folder: PrivateFolder,
    traces: Exporter | None,
    verbose: bool,
) -> None:
    cpus = allowed_cpus()
    # as if all compute on CPUs, and on the same ones: whether a GPU does is for children to find out
    leave_to_compute(max(model.threads or physical_cores() for model in config.models))
    if traces is not None:
        traces.start()

    def leave() -> None:
        folder.remove()
        if traces is not None:
            traces.close()

    front = Front(listener, config.server, leave, n_descriptors=2)
    read_keys_on_signal(keys)
    database = folder.path / _DATABASE if config.responses.path is None else Path(config.responses.path)
    store = await front.loaded(in_thread(partial(ResponseStore, replace(config.responses, path=str(database)))))
    ram_bytes = config.cache.ram_bytes
    if ram_bytes is None:
        ram_bytes = available_bytes() // _CACHE_SHARE

    room = room_of_models(config.pool.max_bytes)

    def spawn(member: Member) -> Child:
        socket = folder.socket()
        own = child_config(config, member.config, socket, database, ram_bytes)
        told = member.config.memory_bytes
        shared = (room, len(config.models)) if told is None else (told, 1)
        load_seconds = config.pool.load_timeout_seconds
        return Child(own, socket, shared, load_seconds=load_seconds, verbose=verbose, cpus=cpus)

    now = asyncio.get_running_loop().time
    members = [Member(model.alias or "", model, now) for model in config.models]
    catalogue = Catalogue(members)
    events = Events(members, PING_SECONDS)
    fleet = Fleet(
        members,
        spawn,
        config.pool,
        _Watch(catalogue, events),
        max_bytes=room,
        max_queue=config.server.max_queue,
        now=now,
    )
    origins = Origins(config.server, listener.hosts)
    app = PoolApp(fleet, catalogue, events, store, config, keys=keys, origins=origins, waits=front.waits, spans=traces)
    logger.info("models   %s in up to %.2f GB", ", ".join(fleet.members), fleet.max_bytes / 1e9)
    fleet.start()
    disk = config.disk_cache
    kept = asyncio.create_task(keep_room(FormerFolders(disk, config.models))) if disk is not None else None
    stall_seconds = config.pool.stall_seconds
    watched = asyncio.create_task(Watchdog(fleet, stall_seconds).run()) if stall_seconds is not None else None
    gc.freeze()
    await front.serve(app, fleet.close)
    for task in (kept, watched):
        if task is not None:
            task.cancel()


class _Watch:
    """Tells of models to whoever has to know."""

    def __init__(self, catalogue: Catalogue, events: Events) -> None:
        self._catalogue = catalogue
        self._events = events

    def changed(self, member: Member) -> None:
        if member.state is State.UNLOADED:
            self._catalogue.forget(member)
        self._events.publish(member)

    async def loaded(self, member: Member) -> None:
        await self._catalogue.learn(member)
