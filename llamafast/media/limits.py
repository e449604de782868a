"""How large one item may be, and all together that are fetched."""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

from llamafast.config import MtmdConfig
from llamafast.errors import InvalidMedia, QueueFull

Kind = Literal["image", "audio", "video"]


class ByteLimit(NamedTuple):
    """The most bytes of an item of one kind, as its file has them."""

    kind: Kind
    n_bytes: int

    def check(self, n_bytes: int) -> None:
        """Raises InvalidMedia for more."""
        if n_bytes > self.n_bytes:
            raise InvalidMedia(f"the {self.kind} is larger than model.mtmd.{self.kind}_max_bytes ({self.n_bytes})")


def byte_limit(kind: Kind, config: MtmdConfig) -> ByteLimit:
    return ByteLimit(kind, getattr(config, f"{kind}_max_bytes"))


class FetchedBytes:
    """What the media that all requests in progress had fetched come to: at most ``max_bytes``. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.held = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def hold(self, n_bytes: int) -> None:
        """So many more, or fewer. Raises QueueFull."""
        with self._lock:
            if n_bytes > 0 and self.held + n_bytes > self._max_bytes:
                raise QueueFull(f"the media of requests in progress hold {self.held} bytes already")
            self.held += n_bytes


class FetchedItem:
    """The part of one item in FetchedBytes, as long as somebody holds this."""

    def __init__(self, all_held: FetchedBytes) -> None:
        self._all_held = all_held
        self._n_bytes = 0

    def grow(self, n_bytes: int) -> None:
        """It has come to ``n_bytes``. Raises QueueFull."""
        self._all_held.hold(n_bytes - self._n_bytes)
        self._n_bytes = n_bytes

    def __del__(self) -> None:
        self._all_held.hold(-self._n_bytes)
