"""The life of a model's process: brought, let go, dead before its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol

from llamafast.errors import ModelLoadError, ModelNotLoaded
from llamafast.pool.children import ChildPort, Died, close_idle
from llamafast.pool.member import Member, State

log = logging.getLogger(__name__)


class Watcher(Protocol):
    """Hears of what happens to models."""

    def changed(self, member: Member) -> None:
        """It is in another state."""

    async def loaded(self, member: Member) -> None:
        """It is about to answer."""


class Lives:
    """``spawn`` makes a child for a member, ``max_bytes`` bounds the memory of all, ``wake`` is called whenever
    something has happened."""

    def __init__(
        self,
        spawn: Callable[[Member], ChildPort],
        watcher: Watcher,
        unload_seconds: float,
        max_bytes: int,
        wake: Callable[[], None],
    ) -> None:
        self._spawn = spawn
        self._watcher = watcher
        self._unload_seconds = unload_seconds
        self._max_bytes = max_bytes
        self._wake = wake
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._stalled: dict[ChildPort, str] = {}

    def bring(self, member: Member, only_weigh: bool = False) -> None:
        """Load it, or only find out what it takes."""
        member.bringing = True
        self._set(member, State.WEIGHED if only_weigh else State.LOADING)
        self._do(self._brought(member, only_weigh))

    async def _brought(self, member: Member, only_weigh: bool) -> None:
        child = member.child
        try:
            if child is None:
                member.begun()
                child = member.child = self._spawn(member)
                child.gone.add_done_callback(partial(self._gone, member, child))
                n_bytes = await child.begin()
                if member.need is None:
                    member.need = n_bytes
                if child.gone.done():  # which nobody will tell any more
                    raise Died(child.gone.result())
            if not only_weigh:
                await child.load()
                await self._loaded(member)
                if child.gone.done() or member.dismissed:  # meanwhile
                    raise Died(await asyncio.shield(child.gone))
                log.info("models   %s is loaded", member.name)
                member.blocked_at = None
                member.rested = False
                member.stay()
                self._set(member, State.LOADED)
        except ModelLoadError as error:
            self._refused(member, str(error), f"cannot be loaded: {error}")
        except Died as error:
            self._failed(member, error.code, str(error))
        except Exception as error:  # out of processes or descriptors
            log.exception("models   %s", member.name)
            if child is not None:
                await child.end(0)
            self._refused(member, str(error), "cannot be loaded now")
        finally:
            member.bringing = False
            self._wake()

    async def _loaded(self, member: Member) -> None:
        try:
            await self._watcher.loaded(member)
        except Exception:  # it answers all the same
            log.exception("models   %s", member.name)

    def let_go(self, member: Member) -> None:
        child = member.child
        assert child is not None
        if member.state is State.LOADED:
            member.measured(self._max_bytes)
        member.rested = member.state is State.LOADED or member.wanted_at is None
        self._set(member, State.UNLOADING)
        self._do(child.end(self._unload_seconds))

    def end_stalled(self, member: Member, fault: str) -> None:
        """Its process hangs, and is ended as it stands: that is a failure, and whoever comes meanwhile waits."""
        child = member.child
        assert child is not None
        self._stalled[child] = fault
        self._set(member, State.UNLOADING)
        child.kill()

    def _gone(self, member: Member, child: ChildPort, gone: asyncio.Future[int]) -> None:
        """A process has ended, and its memory is free."""
        if self._closing:
            return
        self._do(close_idle(child.door))
        if member.child is child and not member.bringing:
            fault = self._stalled.pop(child, None)
            if member.state is State.UNLOADING and fault is None:
                member.child = None
                member.exit_code = gone.result()
                self._set(member, State.UNLOADED)
            else:
                self._failed(member, gone.result(), fault or str(Died(gone.result())))
        self._wake()

    def _refused(self, member: Member, fault: str, told: str) -> None:
        if member.pinned and not member.rested:
            self._failed(member, None, fault)
        else:
            member.child = None
            log.error("models   %s %s", member.name, told)
            member.refusal(fault)
            self._set(member, State.UNLOADED)
        member.refuse(ModelNotLoaded(f"the model {member.name!r} {told}"))

    def _failed(self, member: Member, code: int | None, fault: str) -> None:
        """Its process has ended, or is about to, though nobody wanted that."""
        member.child = None
        if not member.dismissed and (not member.rested or member.waiting or member.asked):
            member.failure(code, fault)
            log.error("models   %s has failed: %s", member.name, fault)
        self._set(member, State.UNLOADED)
        if member.failed:
            log.error("models   %s has failed too often, and is not tried again by itself", member.name)
            member.wanted_at = None
            member.asked = False
            member.refuse(member.has_failed())
        elif member.pinned and not member.rested and member.wanted_at is None:
            member.wanted_at = member.used_at

    def _set(self, member: Member, state: State) -> None:
        member.state = state
        self._watcher.changed(member)

    def end_early(self, member: Member) -> None:
        """It is not there yet, and not wanted any more."""
        if not member.bringing:
            self.let_go(member)
            return
        assert member.child is not None
        member.rested = member.dismissed = True
        self._do(member.child.end(0))

    async def close(self, members: Iterable[Member]) -> None:
        """End all processes, whatever they do."""
        self._closing = True
        await asyncio.gather(*(member.child.end(0) for member in members if member.child is not None))
        for task in self._tasks:
            task.cancel()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
