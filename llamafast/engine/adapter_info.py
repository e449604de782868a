"""What the layers above may know of adapters, and change."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

from msgspec import Struct


class AdapterInfo(Struct, frozen=True):
    """``scale`` is what a request has of it that does not choose; ``name`` None: it cannot be asked for by name. An
    activated adapter (aLoRA) has the tokens of its ``invocation``. Its file has ``task_name``, ``prompt_prefix``."""

    id: int
    name: str | None
    path: str
    scale: float
    invocation: tuple[int, ...] = ()
    task_name: str = ""
    prompt_prefix: str = ""


class AdapterUse(Struct, frozen=True):
    """How many requests have had an adapter, and how many of them run or wait now."""

    id: int
    name: str | None
    n_requests: int
    running: int
    waiting: int


class AdaptersPort(Protocol):
    """Event loop."""

    @property
    def names(self) -> Collection[str]:
        """Those that a request may ask for, now and later."""

    def listed(self) -> list[AdapterInfo]:
        """All, by id."""

    def apply(self, chosen: Iterable[tuple[int, float]]) -> None:
        """From now on a request that does not choose has these, by id and scale, and no others. Raises InvalidRequest
        for an id that there is not, or that is there twice."""

    async def load(self, name: str, path: Path, scale: float = 1.0) -> None:
        """Let requests ask for one more. Raises InvalidRequest for a file that is none of this model's, a name that is
        taken, or where there are too many."""

    async def unload(self, name: str) -> None:
        """Let nobody ask for one any more, and forget what was computed with it. Raises AdapterNotFound, AdapterInUse
        or EngineUnavailable."""

    def uses(self) -> list[AdapterUse]:
        """Of all, by id."""
