"""What the engine thread notes of prefixes for routers: who has which tokens, and where.

Only prefixes that anybody may share are noted. Whoever reads the notes does the rest in a thread of its own.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

# By vLLM's words for media: KV cells of sequences that run, host memory, the disk.
Tier = Literal["GPU", "CPU", "STORAGE"]
RUNNING: Tier = "GPU"
RAM: Tier = "CPU"
DISK: Tier = "STORAGE"


class Held(NamedTuple):
    """``owner`` has the tokens from ``start`` on of a prompt that begins with ``tokens``; until it is Dropped in that
    tier these stay as they are."""

    tier: Tier
    owner: object
    tokens: array[int]
    start: int


class Dropped(NamedTuple):
    """``owner`` has them no more; None: nobody has any in this tier."""

    tier: Tier
    owner: object | None


Note = Held | Dropped


class KVLog:
    """One thread notes, another takes; neither waits."""

    def __init__(self) -> None:
        self._notes: deque[Note] = deque()

    def hold(self, tier: Tier, owner: object, tokens: array[int], start: int) -> None:
        self._notes.append(Held(tier, owner, tokens, start))

    def drop(self, tier: Tier, owner: object | None) -> None:
        """Also of whom nothing is noted."""
        self._notes.append(Dropped(tier, owner))

    def taken(self) -> Iterator[Note]:
        """What was noted, in order, until there is no more."""
        while self._notes:
            yield self._notes.popleft()
