"""The thread that finds out what is on the disk and brings what is asked for."""

from __future__ import annotations

import errno
import logging
import threading
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamafast.engine.disk_entry import (
    HEAD_BYTES,
    NAME,
    UNFINISHED,
    Checksum,
    Head,
    file_name,
    parse_head,
    tokens_of,
)
from llamafast.engine.disk_events import Brought, Listed, Seconds, Tell
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.disk_room import DiskRoom
from llamafast.engine.files import BLOCK, SLICE, Found, give_way, in_blocks, passes
from llamafast.engine.pages import Pages
from llamafast.errors import ConfigError

logger = logging.getLogger(__name__)

# What one look at a file takes in: its head and the tokens of a usual part.
LOOK = HEAD_BYTES + 12 * 1024
LISTED_AT_ONCE = 64
# Between two slices, as long as the one before took: on a small virtual machine a disk at its full speed takes CPU time
# from whoever computes.
RESTS = 1.0
# What cannot be looked at so often holds up nothing any more.
MOST_LOOKS = 4
# Between two looks for what another process has written.
LOOK_SECONDS = 30.0


class DiskReader:
    """``known`` are the ids that were listed or written here. ``read``, ``withdraw`` and ``close`` may be called by any
    thread."""

    def __init__(self, folder: DiskFolder, room: DiskRoom, tell: Tell, counts: Counter[str]) -> None:
        self.known: set[str] = set()
        self.gives_way = True  # somebody computes meanwhile
        self.seconds = Seconds()
        self._folder = folder
        self._files = folder.files
        self._room = room
        self._tell = tell
        self._counts = counts
        self._wanted: OrderedDict[str, tuple[float, Head]] = OrderedDict()
        self._since: float | None = None  # when what is being read was asked for
        self._wakes = threading.Condition()
        self._pages = Pages()
        self._closing = self._listed = False
        self._n_looks = 0
        self._thread = threading.Thread(target=self._run, name="llamafast-disk-read", daemon=True)

    def start(self) -> None:
        """Unless it was closed first."""
        if not self._closing:
            self._thread.start()

    def read(self, head: Head) -> None:
        with self._wakes:
            self._wanted[head.id] = time.monotonic(), head
            self._wakes.notify()

    def withdraw(self, id: str) -> bool:
        with self._wakes:
            return self._wanted.pop(id, None) is not None

    @property
    def waits_since(self) -> float:
        """When the oldest of what is asked for was; inf where nothing is."""
        with self._wakes:
            return self._since or next((asked_at for asked_at, _ in self._wanted.values()), float("inf"))

    @property
    def is_listing(self) -> bool:
        """Whether the first list is still to be told."""
        return self._thread.is_alive() and not self._listed

    def close(self, seconds: float) -> None:
        """Returns when it has ended, after what it is reading, or after so long."""
        with self._wakes:
            self._closing = True
            self._wakes.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        give_way()
        self._list()
        looked_at = time.monotonic()
        while True:
            with self._wakes:
                if not self._wanted and not self._closing:
                    self._wakes.wait(LOOK_SECONDS if self._looks_again else None)
                if self._closing:
                    return
                self._since, head = self._wanted.popitem(last=False)[1] if self._wanted else (None, None)
            if head is not None:
                self._tell(self._brought(head))
                self._since = None
            if self._looks_again and time.monotonic() - looked_at >= LOOK_SECONDS:
                self._list()
                looked_at = time.monotonic()

    @property
    def _looks_again(self) -> bool:
        """Another process writes, or the folder could not be listed yet."""
        return not (self._folder.locked and self._listed)

    def _list(self) -> None:
        """Tell of what is there and was not told of yet."""
        try:
            self._folder.take()
        except (OSError, ConfigError) as error:
            logger.debug("disk     %s cannot be written: %s", self._folder.namespace, error)
        try:
            found = [one for one in self._files.scan(self._folder.namespace) if one.is_file]
            found.sort(key=lambda one: one.used_at)
            if self._folder.locked:
                self._room.weigh_others(sum(one.n_bytes for one in found if NAME.fullmatch(one.name)))
        except OSError as error:
            logger.warning("disk     cannot list %s: %s", self._folder.namespace, error)
            return
        entries: list[tuple[Head, array[int], int]] = []
        unread: set[str] = set()  # and what continues it
        for one in found:
            if self._closing:
                return
            if (name := NAME.fullmatch(one.name)) is None:
                if self._folder.locked and UNFINISHED.fullmatch(one.name):
                    self._folder.unlink(one.name)
            elif name["id"] not in self.known:
                try:
                    entries += self._looked_at(name["id"], one)
                    self.known.add(name["id"])
                except (OSError, MemoryError) as error:
                    logger.warning("disk     cannot read %s: %s", one.name, error)
                    unread.add(name["id"])
        entries.sort(key=lambda entry: entry[0].depth)
        for i in range(0, len(entries), LISTED_AT_ONCE):
            batch = [entry for entry in entries[i : i + LISTED_AT_ONCE] if self._has_base(entry[0], unread)]
            self._tell(Listed(batch, whole=False))
        self._n_looks += 1
        if not unread or not self._folder.locked or self._n_looks == MOST_LOOKS:
            self._tell(Listed([], whole=True))
            self._listed = True

    def _has_base(self, head: Head, unread: set[str]) -> bool:
        """Whether an entry's place can be found; where another process writes, what it continues may come later."""
        if head.base in unread or not (self._folder.locked or head.base in self.known or not head.base):
            unread.add(head.id)
            self.known.discard(head.id)
            return False
        return True

    def _looked_at(self, id: str, found: Found) -> list[tuple[Head, array[int], int]]:
        """An entry, or none where the file is no such; then it goes. Raises OSError or MemoryError where it may be."""
        head = tokens = None
        try:
            with self._opened(self._folder.path(id)) as fd:
                n_bytes = self._files.size(fd)
                data = self._files.read(fd, LOOK, 0)
                head = parse_head(data, id, n_bytes)
                if head is not None and head.at > len(data):
                    data += self._files.read(fd, head.at - len(data), len(data))
            tokens = None if head is None else tokens_of(data[: head.at], head, self._folder.name)
        except FileNotFoundError:
            return []
        except (OSError, MemoryError) as error:
            if passes(error):
                self._room.stray(id, found.n_bytes)
                raise
            logger.warning("disk     cannot read %s: %s", id, error)
        if head is None or tokens is None:
            self._counts["disk_corrupt"] += 1
            if self._folder.locked and not self._folder.unlink(file_name(id)):
                self._room.stray(id, found.n_bytes)
            return []
        self._room.found(id, found.n_bytes)
        return [(head, tokens, found.n_bytes)]

    def _brought(self, head: Head) -> Brought:
        state, began = None, time.monotonic()
        try:
            try:
                state = self._state(head, direct=True)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                state = self._state(head, direct=False)
        except FileNotFoundError:
            return Brought(head.id, None, time.monotonic() - began)
        except (OSError, MemoryError) as error:
            logger.warning("disk     cannot read %s: %s", head.id, error)
            if passes(error):
                return Brought(head.id, None, time.monotonic() - began, lost=False)
        seconds = time.monotonic() - began
        if state is None:
            self._counts["disk_corrupt"] += 1
        else:
            self._counts["disk_read_bytes"] += len(state)
            self.seconds.add(seconds)
        return Brought(head.id, state, seconds)

    def _state(self, head: Head, *, direct: bool) -> memoryview | None:
        """However few bytes each call gives; None where there are fewer or more than it says.

        Slice by slice, past the page cache: one system call for all of it keeps the event loop waiting for 10 ms, and
        filling the page cache and emptying it again cost whoever computed on another CPU of a virtual machine a twelfth
        of its time.
        """
        checksum = Checksum()
        with self._opened(self._folder.path(head.id), direct=direct) as fd:
            if self._files.size(fd) != head.file_bytes:
                return None
            begin = head.at // BLOCK * BLOCK
            skipped, end, n = head.at - begin, head.file_bytes - begin, 0
            pages = self._pages.take(in_blocks(end))
            while n < end:
                began = time.monotonic()
                came = self._files.read_into(fd, pages[n : n + SLICE], begin + n)
                if not came:
                    return None
                checksum.add(pages[max(n, skipped) : min(n + came, end)])
                n += came
                if n < end and self.gives_way:
                    time.sleep(RESTS * (time.monotonic() - began))
        return pages[skipped:end] if checksum.text == head.state_xxh3_128 else None

    @contextmanager
    def _opened(self, path: Path, *, direct: bool = False) -> Iterator[int]:
        fd = self._files.open(path, direct=direct)
        try:
            yield fd
        finally:
            self._files.close(fd)
