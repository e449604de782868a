"""The thread that writes states to the disk and deletes what goes, in the order in which it was told to."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from llamafast.engine.disk_entry import Checksum, Head, encode_head, file_name, unfinished_name
from llamafast.engine.disk_events import Order, Seconds, Tell, Written
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.disk_room import DiskRoom
from llamafast.engine.files import SLICE, give_way

logger = logging.getLogger(__name__)

# A day may write as much as the folder holds, and at once so much.
DAY, BURST = 86_400.0, 2**30
# Nobody waits for a write, so it takes some times as long as it might.
RESTS = 3.0
# What hangs at the end is left to itself after so long.
HANGS = 1.0
# After a write that failed, doubled each time up to the second.
PAUSE, LONGEST_PAUSE = 60.0, 600.0


class DiskWriter:
    """``write``, ``delete``, ``touch``, ``set_aside`` and ``close`` may be called by any thread."""

    def __init__(self, folder: DiskFolder, room: DiskRoom, tell: Tell, counts: Counter[str], known: set[str]) -> None:
        self.seconds = Seconds()
        self.paused_until = 0.0
        self._pause = PAUSE
        self._folder = folder
        self._files = folder.files
        self._room = room
        self._tell = tell
        self._counts = counts
        self._known = known
        self._orders: deque[tuple[float, bool, Callable[[], None]]] = deque()  # since when, and whether it may be left
        self._since: float | None = None  # when what is being carried out was ordered
        self._wakes = threading.Condition()
        self._closing = False
        self._until = float("inf")
        self._failed: set[str] = set()  # ids of what could not be written: nothing may continue it
        self._allowed, self._allowed_at = float(BURST), time.monotonic()
        self._thread = threading.Thread(target=self._run, name="llamafast-disk-write", daemon=True)

    def start(self) -> None:
        """Unless it was closed first."""
        if not self._closing:
            self._thread.start()

    def write(self, order: Order) -> None:
        self._order(lambda: self._write(order), may_be_left=True)

    def delete(self, id: str) -> None:
        self._order(lambda: self._delete(id))

    def touch(self, id: str) -> None:
        self._order(lambda: self._files.touch(self._folder.path(id)))

    def set_aside(self) -> None:
        self._order(self._set_aside)

    @property
    def waits_since(self) -> float:
        """When the oldest of what is ordered was; inf where nothing is."""
        with self._wakes:
            return self._since or next((order[0] for order in self._orders), float("inf"))

    def close(self, seconds: float) -> None:
        """Begin no write after so long; returns when it has ended, or a little later where the disk hangs."""
        with self._wakes:
            self._closing = True
            self._until = time.monotonic() + seconds
            self._wakes.notify()
        if self._thread.ident is not None:
            self._thread.join(max(seconds, 0.0) + HANGS)

    def _order(self, carry_out: Callable[[], None], *, may_be_left: bool = False) -> None:
        with self._wakes:
            self._orders.append((time.monotonic(), may_be_left, carry_out))
            self._wakes.notify()

    def _run(self) -> None:
        give_way()
        while True:
            with self._wakes:
                self._since = None
                while not self._orders and not self._closing:
                    self._wakes.wait()
                if not self._orders:
                    return
                self._since, may_be_left, carry_out = self._orders.popleft()
            if may_be_left and time.monotonic() > self._until:
                continue
            try:
                carry_out()
            except FileNotFoundError:
                pass  # what was to be touched has gone
            except Exception:
                logger.exception("an order of the disk tier failed")

    def _write(self, order: Order) -> None:
        head, full = None, False
        began = time.monotonic()
        try:
            if order.base not in self._failed and self._may_write(order):
                head = self._written(order)
                self._pause = PAUSE
                self.seconds.add(time.monotonic() - began)
        except (OSError, MemoryError) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not order.again
            self._counts["disk_failures"] += 1
            if full:
                logger.warning("disk     cannot write: %s; a tenth of what is there makes room", error)
            else:
                logger.warning("disk     cannot write: %s; the next try is in %.0f s", error, self._pause)
                self.paused_until = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
        finally:
            if head is None:
                self._failed.add(order.id)
            self._tell(Written(order.id, head, full))

    def _may_write(self, order: Order) -> bool:
        now = time.monotonic()
        self._allowed = min(BURST, self._allowed + (now - self._allowed_at) * self._room.max_bytes / DAY)
        self._allowed_at = now
        if now < self.paused_until or self._allowed < order.file_bytes:
            self._counts["disk_slow"] += 1
            return False
        return self._room.reserve(order.id, order.file_bytes)

    def _written(self, order: Order) -> Head:
        """What there is room for. Raises OSError, having left nothing."""
        aside = unfinished_name(order.id)
        try:
            self._folder.restore()
            if self._files.free_bytes(self._folder.namespace) < order.file_bytes:
                raise OSError(errno.ENOSPC, "less than a twentieth of the file system would be left")
            fd = self._files.create(self._folder.namespace / aside)
            try:
                checksum = Checksum()
                state, at = memoryview(order.state), order.at
                for i in range(0, len(state), SLICE):
                    began = time.monotonic()
                    checksum.add(state[i : i + SLICE])
                    self._put(fd, state[i : i + SLICE], at + i)
                    if not self._closing:
                        time.sleep(RESTS * (time.monotonic() - began))
                head = order.head(checksum.text)
                self._put(fd, memoryview(encode_head(head, self._folder.name, order.tokens)), 0)
                self._files.flush(fd)
            finally:
                self._files.close(fd)
            self._known.add(order.id)
            self._files.rename(self._folder.namespace / aside, self._folder.path(order.id))
        except BaseException:
            if self._folder.unlink(aside):
                self._room.release(order.id)
            else:
                self._room.stray(order.id)
            raise
        self._allowed -= order.file_bytes
        self._counts["disk_written_bytes"] += order.file_bytes
        return head

    def _put(self, fd: int, data: memoryview, at: int) -> None:
        """All of it."""
        while data:
            n = self._files.write(fd, data, at)
            data, at = data[n:], at + n

    def _delete(self, id: str) -> None:
        if self._folder.unlink(file_name(id)):
            self._room.release(id)
            self._known.discard(id)
        else:
            self._room.stray(id)

    def _set_aside(self) -> None:
        self._failed |= self._known
        self._room.set_aside(self._folder.set_aside())
        self._folder.restore()
