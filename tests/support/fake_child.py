"""Children of a pool without processes: each step of their lives is the test's to allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpcore2

from llamafast.config import ModelConfig, PoolLimits
from llamafast.errors import ModelLoadError
from llamafast.pool.children import Died, Door
from llamafast.pool.fleet import Fleet
from llamafast.pool.member import Member


class FakeChild:
    """``n_bytes`` is what it says that it needs. ``may_load`` and ``may_end`` hold it up until they are set."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.peak: int | None = None
        self.may_load = asyncio.Event()
        self.may_load.set()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.loading = False
        self.loaded = False
        self.ending = False
        self.refusal = ""
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.door = Door(Path("/nowhere"), "secret", httpcore2.AsyncConnectionPool(uds="/nowhere"))

    async def begin(self) -> int:
        await asyncio.sleep(0)
        return self.n_bytes

    async def load(self) -> None:
        self.loading = True
        allowed = asyncio.ensure_future(self.may_load.wait())
        await asyncio.wait((allowed, self.gone), return_when=asyncio.FIRST_COMPLETED)
        allowed.cancel()
        if self.gone.done():
            raise Died(self.gone.result())
        if self.refusal:
            self.die(1)
            raise ModelLoadError(self.refusal)
        self.loading = False
        self.loaded = True

    def peak_bytes(self) -> int | None:
        return self.peak

    async def end(self, seconds: float) -> None:
        self.ending = True
        await self.may_end.wait()
        self.die(0)

    def kill(self) -> None:
        self.die(-9)

    def die(self, code: int) -> None:
        self.loaded = self.loading = False
        if not self.gone.done():
            self.gone.set_result(code)

    @property
    def holds_memory(self) -> bool:
        return (self.loading or self.loaded) and not self.gone.done()


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


class Pool:
    """A fleet of fakes. ``sizes`` are what models need; other keywords are keys of all models' configs."""

    def __init__(
        self,
        sizes: dict[str, int],
        max_bytes: int,
        *,
        max_queue: int = 100,
        queue_seconds: float = 60.0,
        models: dict[str, dict[str, Any]] | None = None,
        **common: Any,
    ) -> None:
        self.clock = Clock()
        self.sizes = sizes
        self.children: dict[str, list[FakeChild]] = {name: [] for name in sizes}
        self.states: list[tuple[str, str]] = []
        self.prepare: dict[str, Any] = {}
        configs = {
            name: ModelConfig(path="m", alias=name, **{"load": "on_demand", **common, **((models or {}).get(name, {}))})
            for name in sizes
        }
        members = [Member(name, config, self.clock) for name, config in configs.items()]
        limits = PoolLimits(queue_seconds=queue_seconds, unload_seconds=1.0)
        self.fleet = Fleet(members, self._spawn, limits, self, max_bytes=max_bytes, max_queue=max_queue, now=self.clock)
        self.fleet.start()

    def _spawn(self, member: Member) -> FakeChild:
        child = FakeChild(self.sizes[member.name])
        if prepare := self.prepare.get(member.name):
            prepare(child)
        self.children[member.name].append(child)
        return child

    def changed(self, member: Member) -> None:
        self.states.append((member.name, member.state.word))

    async def loaded(self, member: Member) -> None:
        await asyncio.sleep(0)

    def __getitem__(self, name: str) -> Member:
        return self.fleet.members[name]

    @property
    def loaded_names(self) -> set[str]:
        return {name for name, children in self.children.items() if any(one.loaded for one in children)}

    @property
    def held_bytes(self) -> int:
        return sum(one.n_bytes for children in self.children.values() for one in children if one.holds_memory)

    async def settle(self, seconds: float = 0.0) -> None:
        """Let everything happen that can, after ``seconds`` of the clock."""
        self.clock.at += seconds
        self.fleet._wake.set()
        for _ in range(40):
            await asyncio.sleep(0)

    async def ask(self, name: str) -> asyncio.Task[Door]:
        """A request that goes as far as it can."""
        task = asyncio.create_task(self.fleet.enter(self[name]))
        await self.settle()
        return task

    async def use(self, name: str, ttl_seconds: float | None = None) -> None:
        """A whole request."""
        await (await self.ask(name))
        self.clock.at += 0.01
        self.fleet.leave(self[name], ttl_seconds)
        await self.settle()

    async def close(self) -> None:
        for children in self.children.values():
            for child in children:
                child.may_end.set()
        await self.fleet.close(0)


MakePool = Callable[..., Pool]
