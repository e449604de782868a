"""What fits into memory beside what: pure policy, which knows models by what they take and when they were used.

Nobody who is busy leaves, whoever waits. Of the idle ones those leave that were used least recently, and only as soon
as that makes room enough. What a model that goes still takes is waited for, and a process that waits itself goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

# So long a model waits for busy ones to become idle by chance; then these take no more requests until it has had its
# turn.
PATIENCE_SECONDS = 5.0


class Phase(Enum):
    """Of a model that has memory: its process waits for room, it is loading, answers, or is on its way out."""

    WEIGHED = 0
    LOADING = 1
    LOADED = 2
    UNLOADING = 3


class Holder(NamedTuple):
    """A model that has memory: ``n_bytes`` of it. ``used_at`` is when its last answer ended."""

    name: str
    phase: Phase
    n_bytes: int
    busy: bool
    used_at: float


class Fits(NamedTuple):
    """There is room now."""


class Evict(NamedTuple):
    """There will be once these idle models have gone."""

    names: tuple[str, ...]


class Wait(NamedTuple):
    """Somebody waits for room as well, is loading, going or busy. The busy ``in_the_way`` would have to become idle."""

    in_the_way: tuple[str, ...]


class Never(NamedTuple):
    """The model is larger than all that there may be."""


Verdict = Fits | Evict | Wait | Never


def room_for(n_bytes: int, holders: Iterable[Holder], max_bytes: int) -> Verdict:
    """Whether a model of ``n_bytes`` may be loaded beside ``holders``, or what has to happen first."""
    if n_bytes > max_bytes:
        return Never()
    holders = list(holders)
    missing = sum(holder.n_bytes for holder in holders) + n_bytes - max_bytes
    if missing <= 0:
        return Fits()
    missing -= sum(holder.n_bytes for holder in holders if holder.phase in (Phase.UNLOADING, Phase.WEIGHED))
    if missing <= 0:
        return Wait(())
    loaded = sorted((holder for holder in holders if holder.phase is Phase.LOADED), key=lambda one: one.used_at)
    leaving, missing = _enough([one for one in loaded if not one.busy], missing)
    if missing <= 0:
        return Evict(tuple(one.name for one in leaving))
    busy, _ = _enough([one for one in loaded if one.busy], missing)
    return Wait(tuple(one.name for one in (*leaving, *busy)))


def _enough(candidates: Iterable[Holder], missing: int) -> tuple[list[Holder], int]:
    """The first ``candidates`` that take so much, or all of them, without those that turn out not to be needed; and
    what is missing still."""
    chosen: list[Holder] = []
    for one in candidates:
        if missing <= 0:
            break
        chosen.append(one)
        missing -= one.n_bytes
    for one in chosen[::-1]:
        if missing + one.n_bytes <= 0:
            chosen.remove(one)
            missing += one.n_bytes
    return chosen, missing
