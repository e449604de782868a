"""Files of saved prefixes in a folder: written, read, found again and deleted, by threads of its own.

It knows no tree, and decides nothing: see ``disk_tier``. A file is written under another name, its bytes are brought to
the disk, and it is renamed; what a kill or a power cut leaves is a file that is not there or one whose checksums fail.
Neither is read.

Names are random, and a namespace is a folder for all that one model, computed one way, may read. One process writes
there, the one with the lock; others only read.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable

from llamafast.engine.disk_entry import Head
from llamafast.engine.disk_events import Event, Order
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.disk_reader import DiskReader
from llamafast.engine.disk_room import DiskRoom
from llamafast.engine.disk_writer import DiskWriter
from llamafast.engine.types import Histogram

COUNTED = ("disk_read_bytes", "disk_written_bytes", "disk_corrupt", "disk_foreign", "disk_slow", "disk_failures")


class DiskStore:
    """The entries of one namespace. Its methods never block, but for ``close``.

    ``on_news`` is called in any thread when there is an event. All namespaces together have at most ``max_bytes``,
    which no write exceeds even while it goes on; with 0 nothing is written.
    """

    def __init__(self, folder: DiskFolder, max_bytes: int, on_news: Callable[[], None]) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._owns = folder.locked
        self._on_news = on_news
        self._events: deque[Event] = deque()
        self._counts: Counter[str] = Counter()
        self._room = DiskRoom(folder, max_bytes, self._counts)
        self._reader = DiskReader(folder, self._room, self._tell, self._counts)
        self._writer = DiskWriter(folder, self._room, self._tell, self._counts, self._reader.known)

    def start(self) -> None:
        """Begin to list what is there."""
        self._reader.start()
        self._writer.start()

    def close(self, seconds: float) -> None:
        """Carry out what was ordered, for so long at most, and end the threads."""
        until = time.monotonic() + seconds
        self._writer.close(seconds)
        self._reader.close(max(0.0, until - time.monotonic()))
        self.folder.close()

    @property
    def owns(self) -> bool:
        """Whether this process writes the namespace, or did until the lock was lost, and will."""
        self._owns = self._owns or self.folder.locked
        return self._owns

    @property
    def writable(self) -> bool:
        return self.owns and self.max_bytes > 0

    def give_way(self, beside: bool) -> None:
        """Whether somebody computes while it reads."""
        self._reader.gives_way = beside

    def drop(self) -> None:
        """Count a state that is not written because nothing is for a while."""
        self._counts["disk_slow"] += 1

    @property
    def has_news(self) -> bool:
        return bool(self._events)

    def next_event(self) -> Event | None:
        """What has happened since, in order."""
        return self._events.popleft() if self._events else None

    @property
    def elsewhere(self) -> int:
        """Bytes of other namespaces that stay."""
        return self._room.elsewhere

    @property
    def used_bytes(self) -> int:
        """Of all namespaces, as far as they are known."""
        return self._room.used_bytes

    @property
    def write_paused(self) -> bool:
        return time.monotonic() < self._writer.paused_until

    @property
    def counts(self) -> dict[str, float]:
        return {name: self._counts[name] for name in COUNTED} | {
            "disk_bytes": self._room.used_bytes,
            "disk_max_bytes": self.max_bytes,
            "disk_writable": int(self.writable),
            "disk_write_paused": int(self.write_paused),
            "disk_oldest_order": max(0.0, time.monotonic() - min(self._reader.waits_since, self._writer.waits_since)),
        }

    @property
    def is_listing(self) -> bool:
        """Whether what is there is still looked for."""
        return self._reader.is_listing

    def histograms(self) -> dict[str, Histogram]:
        return {
            "disk_read_seconds": self._reader.seconds.histogram,
            "disk_write_seconds": self._writer.seconds.histogram,
        }

    def read(self, head: Head) -> None:
        """Have an entry brought: a Brought will come, unless it is withdrawn first."""
        self._reader.read(head)

    def withdraw(self, id: str) -> bool:
        """Whether the reading of an entry had not begun, and will not."""
        return self._reader.withdraw(id)

    def write(self, order: Order) -> None:
        """Have a state written: a Written will come."""
        self._writer.write(order)

    def delete(self, id: str) -> None:
        """Nothing where another process writes."""
        if self.owns:
            self._writer.delete(id)

    def touch(self, id: str) -> None:
        """An entry was of use; nothing where another process writes."""
        if self.owns:
            self._writer.touch(id)

    def set_aside(self) -> None:
        """What is there is no use: begin without it. Nothing where another process writes."""
        if self.owns:
            self._writer.set_aside()

    def _tell(self, event: Event) -> None:
        self._events.append(event)
        self._on_news()


def new_id() -> str:
    return secrets.token_hex(16)
