"""Which models are loaded: brought when somebody asks, let go when nobody does or others need the room.

A model is brought once, however many requests wait for it. What there is room for says ``llamafast.pool.budget``, in
the order in which models were asked for. Everything happens on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from llamafast.config import PoolLimits
from llamafast.errors import ModelTooLarge, QueueFull, QueueTimeout, ShuttingDown
from llamafast.pool.budget import PATIENCE_SECONDS, Evict, Fits, Never, Wait, room_for
from llamafast.pool.children import ChildPort, Door
from llamafast.pool.lives import Lives, Watcher
from llamafast.pool.member import Member, State

log = logging.getLogger(__name__)

# After a step that went wrong, and should not have.
_AGAIN_SECONDS = 1.0


class Fleet:
    """``spawn`` makes a child for a member, ``max_bytes`` bounds the memory of all, ``max_queue`` the requests that
    wait for a model."""

    def __init__(
        self,
        members: Iterable[Member],
        spawn: Callable[[Member], ChildPort],
        limits: PoolLimits,
        watcher: Watcher,
        *,
        max_bytes: int,
        max_queue: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.members = {member.name: member for member in members}
        self.max_bytes = max_bytes
        self._limits = limits
        self._max_queue = max_queue
        self._now = now
        self._wake = asyncio.Event()
        self._closing = False
        self._lives = Lives(spawn, watcher, limits.unload_seconds, max_bytes, self._wake.set)

    def start(self) -> None:
        """Bring what is to be there from the start."""
        for member in self.members.values():
            if member.pinned:
                self._want(member)
        self._running = asyncio.create_task(self._run())

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a model."""
        return sum(len(member.waiting) for member in self.members.values())

    @property
    def ready(self) -> bool:
        """Whether every model that is to be there from the start is, or would be if it were asked for."""
        return all(member.ready for member in self.members.values())

    def enter_now(self, member: Member) -> Door | None:
        """Where the model answers, which stays until ``leave``; None where it is not to be had at once. Raises
        EngineUnavailable."""
        if self._closing:
            raise ShuttingDown()
        if member.state is not State.LOADED or member.closing:
            return None
        assert member.child is not None
        member.use()
        return member.child.door

    async def enter(self, member: Member) -> Door:
        """The same, once the model is there. Raises QueueFull, QueueTimeout, ModelTooLarge, ModelFailed,
        ModelNotLoaded or EngineUnavailable."""
        if (door := self.enter_now(member)) is not None:
            return door
        if member.failed and not member.asked:
            raise member.has_failed()
        if self.n_waiting >= self._max_queue:
            raise QueueFull(f"{self._max_queue} requests wait for models already")
        place: asyncio.Future[Door] = asyncio.get_running_loop().create_future()
        member.waiting.append(place)
        self._want(member)
        try:
            async with asyncio.timeout(self._limits.queue_seconds):
                return await asyncio.shield(place)
        except TimeoutError:
            self._give_up(member, place)
            raise QueueTimeout(
                f"the model {member.name!r} was not loaded within {self._limits.queue_seconds:g} seconds"
            ) from None
        except asyncio.CancelledError:
            self._give_up(member, place)
            raise

    def leave(self, member: Member, ttl_seconds: float | None = None) -> None:
        """What ``enter`` was for has ended; the model may go after so many seconds (below 0: never; None: as the config
        says)."""
        member.leave(ttl_seconds)
        self._wake.set()

    def load(self, member: Member) -> None:
        """An administrator wants it, whatever has happened to it."""
        if member.state is not State.LOADED:
            member.forgive()
            member.asked = True
            self._want(member)

    def unload(self, member: Member) -> None:
        """An administrator wants its memory back; what runs on it may end."""
        member.asked = False
        if not member.waiting:
            member.wanted_at = None
        if member.state is State.LOADED:
            self._lives.let_go(member)
        elif member.state in (State.WEIGHED, State.LOADING) and member.child is not None:
            self._lives.end_early(member)
        self._wake.set()

    def end_stalled(self, member: Member, child: ChildPort, fault: str) -> None:
        """The process hangs that the model had when somebody looked."""
        if member.child is child and member.state is State.LOADED and not self._closing:
            self._lives.end_stalled(member, fault)
            self._wake.set()

    async def close(self, seconds: float) -> None:
        """Refuse new requests, give running ones so long, then end all children."""
        self._closing = True
        for member in self.members.values():
            member.refuse(ShuttingDown())
        until = time.monotonic() + seconds
        while any(member.busy for member in self.members.values()) and (rest := until - time.monotonic()) > 0:
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), rest)
        await self._lives.close(self.members.values())
        self._running.cancel()

    def _want(self, member: Member) -> None:
        if member.wanted_at is None:
            member.wanted_at = self._now()
        self._wake.set()

    def _give_up(self, member: Member, place: asyncio.Future[Door]) -> None:
        """Nobody waits at ``place`` any more."""
        if place in member.waiting:
            member.waiting.remove(place)
        elif place.done() and place.exception() is None:  # its turn has come meanwhile
            member.leave(None)
        if not member.waiting and not member.asked and (member.rested or not member.pinned):
            member.wanted_at = member.blocked_at = None
        self._wake.set()

    async def _run(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                self._step()
                seconds = self._until_next()
            except Exception:
                log.exception("models are looked after again in a moment")
                seconds = _AGAIN_SECONDS
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), seconds)

    def _until_next(self) -> float | None:
        """Seconds until something is due that nobody tells of."""
        now = self._now()
        times = [
            member.expires_at for member in self.members.values() if member.state is State.LOADED and not member.waiting
        ]
        for member in self.members.values():
            if member.wanted_at is not None and member.state is not State.LOADED:
                times += [at for at in (member.retry_at,) if at > now]
                if member.blocked_at is not None and member.blocked_at + PATIENCE_SECONDS > now:
                    times.append(member.blocked_at + PATIENCE_SECONDS)
        next_at = min(times, default=float("inf"))
        return None if next_at == float("inf") else max(0.0, next_at - now)

    def _step(self) -> None:
        """Everything that can be done now."""
        now = self._now()
        for member in self.members.values():
            if member.state is State.LOADED and not member.busy and not member.waiting and member.expires_at <= now:
                log.info("models   %s is not used any more", member.name)
                self._lives.let_go(member)
            if member.state is State.WEIGHED and member.wanted_at is None and not member.bringing:
                self._lives.let_go(member)
        # first: what has just come does not go before those have it that it came for
        self._serve_all()
        for member in self.members.values():
            member.closing = False
        weighing = blocked = returning = False
        for member in sorted(self.members.values(), key=lambda one: one.wanted_at or 0.0):
            if member.wanted_at is None:
                continue
            if member.state is State.UNLOADING:
                # what it has still will be its own again, whenever its process ends: nobody else waits for that
                returning = True
                continue
            if blocked:
                self._let_wait(member)
                continue
            if weighing and member.need is not None and not member.waiting and not member.asked:
                # nobody is in a hurry, and it may be the other one that there is room for
                continue
            # whoever is behind one that has to wait for room waits too
            blocked = not self._bring_if_there_is_room(member, now, returning)
            weighing = weighing or (member.state is State.WEIGHED and member.bringing)
        self._serve_all()

    def _serve_all(self) -> None:
        for member in self.members.values():
            if member.state is State.LOADED and not member.closing:
                member.serve()

    def _bring_if_there_is_room(self, member: Member, now: float, returning: bool) -> bool:
        """Whether those behind it may be looked at. While one that was asked for before it is ``returning`` it gets no
        room that others have."""
        if member.state in (State.LOADED, State.LOADING) or member.bringing or member.retry_at > now:
            return True
        if member.need is None:
            self._lives.bring(member, only_weigh=True)
            return True
        holders = [held for other in self.members.values() if other is not member and (held := other.holds)]
        verdict = room_for(member.need, holders, self.max_bytes)
        if returning and isinstance(verdict, Evict | Wait):
            self._let_wait(member)
            return False
        pushes = isinstance(verdict, Evict) or (isinstance(verdict, Wait) and bool(verdict.in_the_way))
        if pushes and not member.waiting and not member.asked:
            # nobody wants it yet, and somebody may want what it would push out
            self._drop(member, "there is no room beside what is loaded")
            return True
        match verdict:
            case Fits():
                self._lives.bring(member)
                return True
            case Never():
                told = (
                    f"it takes {member.need} bytes of memory, and all models together may take {self.max_bytes} "
                    "(`memory_bytes` of the model and `pool.max_bytes` say so where they are set)"
                )
                self._drop(member, told)
                member.refuse(ModelTooLarge(f"the model {member.name!r} cannot be loaded: {told}"))
                return True
            case Evict(names):
                for name in names:
                    log.info("models   %s makes room for %s", name, member.name)
                    self.members[name].counts["evictions"] += 1
                    self._lives.let_go(self.members[name])
            case Wait(names):
                if names:
                    self._let_wait(member)
                if member.blocked_at is None:
                    member.blocked_at = now
                if now - member.blocked_at >= PATIENCE_SECONDS:
                    for name in names:
                        self.members[name].closing = True
        return False

    def _let_wait(self, member: Member) -> None:
        """Without a process, whose memory is counted nowhere: what the model takes is known."""
        if member.state is State.WEIGHED and not member.bringing:
            self._lives.let_go(member)

    def _drop(self, member: Member, reason: str) -> None:
        log.error("models   %s is not loaded: %s", member.name, reason)
        member.wanted_at = member.blocked_at = None
        member.asked = False
        member.rested = True
        if member.state is State.WEIGHED:
            self._lives.let_go(member)
