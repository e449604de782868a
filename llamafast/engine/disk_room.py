"""How much the files of the disk tier take, and what leaves for more: other namespaces first."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.namespaces import is_held, remove, weighed

# Other processes write their namespaces meanwhile: so often it is looked at what they take.
WEIGH_SECONDS = 10.0


class _Other(NamedTuple):
    """Another namespace: when it was last used, and what it takes."""

    used_at: float
    place: Path
    n_bytes: int


class DiskRoom:
    """What the files of all namespaces take, at most ``max_bytes``.

    Other namespaces make room for this one, first what has not been used for longest, but none that a process writes.
    Thread-safe.
    """

    def __init__(self, folder: DiskFolder, max_bytes: int, counts: Counter[str]) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._held = 0  # in namespaces that others write
        self._folder = folder
        self._counts = counts
        self._others: list[_Other] = []  # those that may leave
        self._sizes: dict[str, int] = {}
        self._strays: dict[str, int] = {}
        self._weighed_at: float | None = None
        self._lock = threading.Lock()

    @property
    def elsewhere(self) -> int:
        """What stays, whatever leaves of the entries here."""
        return self._held + sum(self._strays.values())

    def weigh_others(self, own_bytes: int) -> None:
        """Look at the other namespaces, and let go what there is no room for beside so many bytes of this one. Raises
        OSError."""
        others, held = [], 0
        for place in self._folder.others():
            used_at, n_bytes = weighed(place, self._folder.files)
            if is_held(place, self._folder.files):
                held += n_bytes
            else:
                others.append(_Other(used_at, place, n_bytes))
        with self._lock:
            self.used_bytes -= self._foreign_bytes
            self._others, self._held = sorted(others), held
            self.used_bytes += self._foreign_bytes
            self._weighed_at = time.monotonic()
        while self._foreign_bytes + own_bytes > self.max_bytes and self._evict():
            pass

    def found(self, id: str, n_bytes: int) -> None:
        """A file is there."""
        with self._lock:
            self.used_bytes += n_bytes - self._sizes.pop(id, 0) - self._strays.pop(id, 0)
            self._sizes[id] = n_bytes

    def stray(self, id: str, n_bytes: int | None = None) -> None:
        """A file is there, of so many bytes or as many as are known, that is no entry and does not go."""
        with self._lock:
            known = self._sizes.pop(id, 0) + self._strays.pop(id, 0)
            self._strays[id] = known if n_bytes is None else n_bytes
            self.used_bytes += self._strays[id] - known

    def reserve(self, id: str, n_bytes: int) -> bool:
        """Whether there is room for a file, which is going to be written. Raises OSError."""
        if self._weighed_at is not None and time.monotonic() - self._weighed_at > WEIGH_SECONDS:
            self.weigh_others(sum(self._sizes.values()))
        while True:
            with self._lock:
                if self.used_bytes + n_bytes <= self.max_bytes:
                    self.used_bytes += n_bytes
                    self._sizes[id] = n_bytes
                    return True
            if not self._evict():
                return False

    def release(self, id: str) -> None:
        """A file is there no more."""
        with self._lock:
            self.used_bytes -= self._sizes.pop(id, 0) + self._strays.pop(id, 0)

    def set_aside(self, place: Path) -> None:
        """All files of this namespace are there now."""
        with self._lock:
            self.used_bytes -= sum(other.n_bytes for other in self._others if other.place == place)
            self._others = [other for other in self._others if other.place != place]
            self._others.insert(0, _Other(0.0, place, sum(self._sizes.values()) + sum(self._strays.values())))
            self._sizes.clear()
            self._strays.clear()

    @property
    def _foreign_bytes(self) -> int:
        return self._held + sum(other.n_bytes for other in self._others)

    def _evict(self) -> bool:
        """Delete another namespace; whether that has made room."""
        while True:
            with self._lock:
                if not self._others:
                    return False
                other = self._others.pop(0)
            gone = remove(other.place, self._folder.files)
            try:
                left = 0 if gone else weighed(other.place, self._folder.files)[1]
            except OSError:
                left = other.n_bytes
            with self._lock:
                self.used_bytes += left - other.n_bytes
                self._held += left
                self._counts["disk_foreign"] += gone
            if left < other.n_bytes:
                return True
