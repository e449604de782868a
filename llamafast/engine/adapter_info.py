"""What the layers above may know of adapters, and change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct


class AdapterInfo(Struct, frozen=True):
    """``scale`` is what a request has of it that does not choose; ``name`` None: it cannot be asked for by name."""

    id: int
    name: str | None
    path: str
    scale: float


class AdaptersPort(Protocol):
    """Event loop."""

    def listed(self) -> list[AdapterInfo]:
        """All, by id."""

    def apply(self, scales: Mapping[int, float]) -> None:
        """From now on a request that does not choose has these, by id, and no others. Raises InvalidRequest for an id
        that there is not."""
