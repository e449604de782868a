"""Models whose processes hang: they are ended, and so started again as those are that have died."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

import msgspec

from llamafast.loop_sockets import Crowded, Scarce
from llamafast.pool.children import ChildPort, Door
from llamafast.pool.fleet import Fleet
from llamafast.pool.member import Member, State
from llamafast.pool.passing import LOST, ask

log = logging.getLogger(__name__)

# Between two questions to a model, and what it has for an answer, at most.
_EVERY_SECONDS = 5.0
_PARTS = 4  # of the bound: so often at least a model is asked before it is given up
# Of the time between two questions: after so many without one this process itself has not run.
_MISSED = 3


class _Health(msgspec.Struct):
    seconds: float = 0.0


async def _healthz(door: Door) -> tuple[int, bytes]:
    return await ask(door, "GET", "/healthz")


class Watchdog:
    """Asks every model that is loaded how it is, which is no use of it. A process that has answered nothing for
    ``stall_seconds``, or whose engine has finished no step over work for so long, is ended; what runs on it fails as if
    it had died. A child tells of an engine that stands still once that is longer than its ``server.stall_seconds``.

    While the parent stands still too (a container that is paused, a process that is stopped) nobody hangs: then time
    counts anew."""

    def __init__(
        self,
        fleet: Fleet,
        stall_seconds: float,
        *,
        healthz: Callable[[Door], Awaitable[tuple[int, bytes]]] = _healthz,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._stall_seconds = stall_seconds
        self._every = min(_EVERY_SECONDS, stall_seconds / _PARTS)
        self._healthz = healthz
        self._now = now
        self._silent_since: dict[ChildPort, float] = {}
        self._ran_at = now()
        self._awake_since = -math.inf

    async def run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:
                log.exception("models are looked after again in a moment")
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """Ask all once, at the same time."""
        loaded = [
            (member, member.child)
            for member in self._fleet.members.values()
            if member.state is State.LOADED and member.child is not None
        ]
        self._tick()
        there = {child for _, child in loaded}
        self._silent_since = {child: since for child, since in self._silent_since.items() if child in there}
        await asyncio.gather(*(self._look_at(member, child) for member, child in loaded))

    async def _look_at(self, member: Member, child: ChildPort) -> None:
        asked_at = self._now()
        try:
            async with asyncio.timeout(self._every):
                status, body = await self._healthz(child.door)
        except (TimeoutError, *LOST) as error:
            if isinstance(error, Scarce) and not isinstance(error, Crowded):
                return  # which says nothing of the child
            member.heard(False)
            silent = self._tick() - self._silent_since.setdefault(child, asked_at)
            self._judge(member, child, silent, "it has not answered for")
            return
        self._tick()
        member.heard(True)
        self._silent_since.pop(child, None)
        stalled = 0.0 if status == 200 else msgspec.json.decode(body, type=_Health).seconds
        self._judge(member, child, stalled, "its engine has stood still over work for")

    def _judge(self, member: Member, child: ChildPort, seconds: float, fault: str) -> None:
        seconds = min(seconds, self._ran_at - self._awake_since)
        if seconds >= self._stall_seconds:
            self._fleet.end_stalled(member, child, f"{fault} {seconds:.3g} s")

    def _tick(self) -> float:
        """What time it is."""
        now = self._now()
        if now - self._ran_at > _MISSED * self._every:
            self._awake_since = now
        self._ran_at = now
        return now
