"""What the engine thread and the threads of the disk tier tell each other."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

from llamafast.engine.disk_entry import HEAD_BYTES, Head
from llamafast.engine.files import in_blocks
from llamafast.engine.types import Histogram

SECONDS_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class Order(NamedTuple):
    """A state to be written: see ``Head``. ``again``: the disk was full, and has some room now."""

    id: str
    base: str
    root: str
    start: int
    depth: int
    tokens: array[int]
    state: bytes | memoryview
    again: bool = False
    base_root: str | None = None

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
            base_root=self.base_root,
        )


class Listed(NamedTuple):
    """Entries that are there, with their own tokens and what their files take; bases come before what continues them,
    and first those that have not been used for longest. With ``whole`` there are no others."""

    entries: list[tuple[Head, array[int], int]]
    whole: bool


class Written(NamedTuple):
    """An order was carried out, or not; ``full``: for want of room on the disk, and worth another try when there is
    some."""

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
