"""What the engine thread and the threads of the disk tier tell each other."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from typing import NamedTuple

from llamafast.engine.disk_entry import HEAD_BYTES, Head
from llamafast.engine.files import in_blocks
from llamafast.engine.types import Histogram

SECONDS_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Order(NamedTuple):
    """A state to be written: see ``Head``."""

    id: str
    base: str
    root: str
    start: int
    depth: int
    tokens: array[int]
    state: bytes | memoryview

    @property
    def at(self) -> int:
        """Where the state begins in the file."""
        return HEAD_BYTES + self.tokens.itemsize * len(self.tokens)

    @property
    def file_bytes(self) -> int:
        """What the file takes, in blocks."""
        return in_blocks(self.at + len(self.state))

    def head(self, checksum: str) -> Head:
        """What the file says of itself."""
        return Head(
            id=self.id,
            base=self.base,
            root=self.root,
            start=self.start,
            stop=self.start + len(self.tokens),
            depth=self.depth,
            n_bytes=len(self.state),
            state_xxh3_128=checksum,
        )


class Listed(NamedTuple):
    """Entries that are there, with their own tokens and what their files take; bases come before what continues them,
    and first those that have not been used for longest. With ``whole`` there are no others."""

    entries: list[tuple[Head, array[int], int]]
    whole: bool


class Written(NamedTuple):
    """An order was carried out, or not; ``full``: for want of room on the disk."""

    id: str
    head: Head | None
    full: bool = False


class Brought(NamedTuple):
    """A state's bytes as they were written, None: they are not to be had; where it is ``lost`` its file is gone or good
    for nothing."""

    id: str
    state: memoryview | None
    seconds: float
    lost: bool = True


Event = Listed | Written | Brought
Tell = Callable[[Event], None]


class DiskRoom:
    """What the files of all namespaces take, at most ``max_bytes``. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.elsewhere = 0  # in other namespaces
        self.used_bytes = 0
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def weigh_others(self, n_bytes: int) -> None:
        with self._lock:
            self.used_bytes += n_bytes - self.elsewhere
            self.elsewhere = n_bytes

    def found(self, id: str, n_bytes: int) -> None:
        """A file is there."""
        with self._lock:
            self.used_bytes += n_bytes - self._sizes.pop(id, 0)
            self._sizes[id] = n_bytes

    def reserve(self, id: str, n_bytes: int) -> bool:
        """Whether there is room for a file, which is going to be written."""
        with self._lock:
            if self.used_bytes + n_bytes > self.max_bytes:
                return False
            self.used_bytes += n_bytes
            self._sizes[id] = n_bytes
            return True

    def release(self, id: str) -> None:
        """A file is there no more."""
        with self._lock:
            self.used_bytes -= self._sizes.pop(id, 0)


class Seconds:
    """How long something took. One thread adds, any reads."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[sum(seconds > bound for bound in SECONDS_BOUNDS)] += 1
        self._sum += seconds

    @property
    def histogram(self) -> Histogram:
        return SECONDS_BOUNDS, list(self._counts), self._sum
