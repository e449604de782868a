"""What is on its way to the disk and from there, and how long that may take."""

from __future__ import annotations

import time
from collections.abc import Callable

from llamafast.engine.disk import DiskStore
from llamafast.engine.disk_entries import Entry
from llamafast.engine.disk_events import Order

# States on their way to the disk, which are kept for that beside the budget of RAM; bytes on their way from there,
# within it.
QUEUE_BYTES, QUEUE_STATES = 256 * 10**6, 64
READ_BYTES = 256 * 10**6
# Nobody waits for longer than some times what reading has been taking, by the bytes; at first it is taken to be a disk.
PATIENCE, LEAST_PATIENCE, FIRST_RATE = 4.0, 0.05, 1e8
LONG_AGO = float("-inf")
TOUCH_SECONDS = 60.0
# How much the last read counts; how soon a disk that was too slow is tried again, by each state that is not written.
RATE_WEIGHT, DRIFT = 0.2, 0.01
# From so many bytes on reading is a matter of how fast the disk is. It is worth it where it takes this share of what
# computing takes.
SIZEABLE, WORTH = 2**20, 0.5


class DiskTraffic:
    """Orders to a DiskStore, and what is asked of it: at most ``most_asked`` bytes at once, but always one.

    ``row_seconds`` is what computing a token takes, 0 where that is not known yet.
    """

    def __init__(self, store: DiskStore, most_asked: int, row_seconds: Callable[[], float]) -> None:
        self._store = store
        self._row_seconds = row_seconds
        self._most_asked = min(READ_BYTES, most_asked)
        self._queue: dict[str, int] = {}  # bytes by id
        self.queued_bytes = 0
        self.asked_bytes = 0
        self._rate = FIRST_RATE
        self._is_known = False  # how fast it is

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    @property
    def queued(self) -> set[str]:
        """Ids of what is ordered to be written."""
        return set(self._queue)

    def takes(self, n_bytes: int) -> bool:
        """Whether a state of so many bytes may be ordered to be written."""
        return not self._queue or (self.queued_bytes + n_bytes <= QUEUE_BYTES and len(self._queue) < QUEUE_STATES)

    def pays(self, n_bytes: int, n_tokens: int) -> bool:
        """Whether a state of so many bytes will be back much sooner than its tokens are computed."""
        compute_seconds = n_tokens * self._row_seconds()
        if n_bytes < SIZEABLE or not self._is_known or not compute_seconds:
            return True
        if n_bytes / self._rate <= WORTH * compute_seconds:
            return True
        self._rate += DRIFT * (FIRST_RATE - self._rate)
        return False

    def write(self, order: Order) -> None:
        self._queue[order.id] = len(order.state)
        self.queued_bytes += len(order.state)
        self._store.write(order)

    def written(self, id: str) -> None:
        """It was, or could not be, or is not to be any more."""
        self.queued_bytes -= self._queue.pop(id, 0)

    def touch(self, entry: Entry) -> None:
        """It was of use, which is noted on the disk now and then."""
        now = time.monotonic()
        if entry.head is not None and now - entry.touched_at > TOUCH_SECONDS:
            entry.touched_at = now
            self._store.touch(entry.id)

    def ask(self, entry: Entry, most: int, held: int) -> None:
        """Have an entry brought, unless too many are, or with the ``held`` bytes that are here for somebody they would
        be more than ``most``: it is to be asked for again when some of these have gone. One is, whatever it takes."""
        there = self.asked_bytes + held
        fits = there + entry.n_bytes <= most and self.asked_bytes + entry.n_bytes <= self._most_asked
        if entry.asked_at is not None or (there and not fits):
            return
        assert entry.head is not None, "who asks has looked for its bytes where they are before they are written"
        entry.asked_at = time.monotonic()
        self.asked_bytes += entry.n_bytes
        entry.patience = self._patience(entry)
        self._store.read(entry.head)

    def wait(self, entry: Entry) -> None:
        """Somebody waits for it."""
        if entry.wanted_at is None:
            entry.wanted_at = time.monotonic()

    def is_late(self, entry: Entry) -> bool:
        """Whether an entry that somebody waits for is not worth that any longer."""
        if entry.wanted_at is None:
            return False
        if entry.wanted_at == LONG_AGO:
            return True
        if entry.asked_at is not None:
            return time.monotonic() - entry.asked_at > entry.patience
        return time.monotonic() - entry.wanted_at > self._patience(entry)

    def _patience(self, entry: Entry) -> float:
        """For what is being read and comes before it, and itself."""
        return LEAST_PATIENCE + PATIENCE * max(self.asked_bytes, entry.n_bytes) / self._rate

    def give_up(self, entry: Entry) -> bool:
        """Nobody is to wait for it as long as anybody holds it; whether that is new."""
        new = entry.wanted_at != LONG_AGO
        entry.wanted_at, entry.given_up = LONG_AGO, True
        return new

    def withdraw(self, entry: Entry) -> None:
        """Nobody asks for it any more; what is being read comes all the same."""
        entry.wanted_at = None
        if entry.asked_at is not None and self._store.withdraw(entry.id):
            self.come(entry)

    def come(self, entry: Entry) -> None:
        """It is not asked for any more."""
        if entry.asked_at is not None:
            entry.asked_at = None
            self.asked_bytes -= entry.n_bytes

    def learn(self, n_bytes: int, seconds: float) -> None:
        """Reading so many bytes took so long."""
        if n_bytes < SIZEABLE:
            return
        self._is_known = True
        self._rate += RATE_WEIGHT * (n_bytes / max(seconds, 1e-4) - self._rate)
