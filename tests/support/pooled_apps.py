"""A PoolApp whose children are Apps over fake engines, each behind Granian on a Unix socket, all in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from granian.constants import Interfaces
from granian.log import LogLevels
from granian.server.embed import Server
from msgspec.structs import replace
from support.fake_child import FakeChild
from support.fake_engine import INFO, FakeEngine

from llamafast.api.app import App
from llamafast.api.client_wait import ClientWaits
from llamafast.api.keys import KeyRing, Keys
from llamafast.api.origins import Origins
from llamafast.api.responses.store import ResponseStore
from llamafast.api.spans import SpanSink
from llamafast.config import PoolConfig
from llamafast.config_file import parse_config
from llamafast.pool.app import PoolApp
from llamafast.pool.catalogue import Catalogue
from llamafast.pool.children import Door, client
from llamafast.pool.division import child_config
from llamafast.pool.events import Events
from llamafast.pool.fleet import Fleet
from llamafast.pool.member import Member, State
from llamafast.pool.tenants import ToldKeys

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TWO = ({"alias": "chat", "aliases": ["gpt-*", "*"]}, {"alias": "other", "load": "on_demand", "aliases": ["gpt-4o"]})


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer secret-{key}"}


class ServedChild(FakeChild):
    """Answers with ``engine``, whose model is the member's; ``config`` is what the parent gives it, ``spans`` where its
    traces go."""

    def __init__(
        self, engine: FakeEngine, config: bytes, place: Path, n_bytes: int, spans: SpanSink | None = None
    ) -> None:
        super().__init__(n_bytes)
        self._spans = spans
        self.config = parse_config(config)
        self.engine = engine
        self.secret = f"secret-of-{place.name}"
        self.door = Door(place, self.secret, client(place))
        self._serving: asyncio.Task[None] | None = None

    async def load(self) -> None:
        await super().load()
        self.app = app = App(
            self.engine,
            self.config,
            keys=ToldKeys(self.secret),
            origins=Origins(self.config.server, None),
            waits=ClientWaits(self.config.server),
            spans=self._spans,
        )
        self._server = Server(
            app, interface=Interfaces.ASGINL, uds=self.door.path, log_level=LogLevels.critical, backpressure=64
        )
        self._serving = asyncio.create_task(self._server.serve())
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_unix_connection(self.door.path)
                writer.close()
                break
            await asyncio.sleep(0.001)

    async def end(self, seconds: float) -> None:
        if self._serving is not None:
            await self.door.http.aclose()
            self.app.drain()
            await self.app.closed()
            self._server.stop()
            await self._serving
        await super().end(seconds)


class Pooled:
    """``app`` in front of children; ``engines`` by model, ``children`` in the order in which they came."""

    def __init__(
        self,
        config: PoolConfig,
        folder: Path,
        keys: KeyRing | None,
        infos: dict[str, Any],
        spans_of_children: SpanSink | None,
        **options: Any,
    ) -> None:
        self.config = config
        self._spans_of_children = spans_of_children
        self.engines = {
            model.alias: FakeEngine(
                info=replace(INFO, id=model.alias, aliases=model.aliases, **infos.get(model.alias, {}))
            )
            for model in config.models
        }
        self.children: dict[str, list[ServedChild]] = {model.alias: [] for model in config.models}
        self.folder = folder
        self.store = ResponseStore(replace(config.responses, path=str(folder / "responses.sqlite")))
        members = [Member(model.alias, model, time.monotonic) for model in config.models]
        self.catalogue = Catalogue(members)
        self.events = Events(members, 15.0)
        self.fleet = Fleet(
            members,
            self._spawn,
            config.pool,
            self,
            max_bytes=config.pool.max_bytes or 2**40,
            max_queue=config.server.max_queue,
        )
        self.app = PoolApp(
            self.fleet,
            self.catalogue,
            self.events,
            self.store,
            config,
            keys=keys or Keys(),
            origins=Origins(config.server, None),
            waits=ClientWaits(config.server),
            **options,
        )
        self.hold: asyncio.Event | None = None

    def _spawn(self, member: Member) -> ServedChild:
        place = self.folder / f"{member.name}{len(self.children[member.name])}"
        config = child_config(self.config, member.config, place, self.folder / "responses.sqlite", 1000)
        child = ServedChild(self.engines[member.name], config, place, 10, self._spans_of_children)
        if self.hold is not None:
            child.may_load = self.hold
        self.children[member.name].append(child)
        return child

    def changed(self, member: Member) -> None:
        if member.state is State.UNLOADED:
            self.catalogue.forget(member)
        self.events.publish(member)

    async def loaded(self, member: Member) -> None:
        await self.catalogue.learn(member)


@asynccontextmanager
async def pooled(
    folder: Path,
    *models: dict[str, Any],
    keys: KeyRing | None = None,
    infos: dict[str, Any] | None = None,
    ping_seconds: float = 15.0,
    spans: tuple[SpanSink | None, SpanSink | None] = (None, None),
    **sections: Any,
) -> AsyncIterator[Pooled]:
    """Each of ``models`` is an entry of the config; ``infos`` are what the fake engines say of theirs, ``spans``
    where traces of the parent and of the children go."""
    tree = {"models": [{"path": "m.gguf", **model} for model in models], **sections}

    config = parse_config(msgspec.json.encode(tree))
    assert isinstance(config, PoolConfig)
    own, of_children = spans
    pool = Pooled(config, folder, keys, infos or {}, of_children, ping_seconds=ping_seconds, spans=own)
    pool.fleet.start()
    try:
        yield pool
    finally:
        pool.app.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(pool.fleet.close(1.0), 30)
        pool.store.close()
