"""A DiskStore without a disk or threads: what is ordered happens when a test says so, or fails."""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from hashlib import blake2b
from types import SimpleNamespace
from typing import NamedTuple

import xxhash

from llamafast.engine.disk_entry import Head
from llamafast.engine.disk_events import Brought, Event, Listed, Order, Written


class Kept(NamedTuple):
    head: Head
    tokens: array[int]
    n_bytes: int
    state: bytes


class FakeStore:
    """``disk`` is what is there by id, and outlives the store. ``orders`` wait to be carried out, in order, as
    ``reads`` do; ``written`` and ``deleted`` are ids of all that was ever ordered, ``all_orders`` those to write."""

    def __init__(
        self, disk: dict[str, Kept], max_bytes: int, *, elsewhere: int = 0, writable: bool = True, at_once: int = 3
    ) -> None:
        self.folder = SimpleNamespace(root=lambda salt: blake2b(salt, digest_size=8).digest() if salt else b"")
        self.disk, self.max_bytes, self.elsewhere, self.writable = disk, max_bytes, elsewhere, writable
        self.write_paused = self.is_listing = False
        self.counts = {"disk_corrupt": 0}
        self.orders: deque[tuple[str, Order | str]] = deque()
        self.reads: OrderedDict[str, Head] = OrderedDict()
        self.written: list[str] = []
        self.all_orders: list[Order] = []
        self.deleted: list[str] = []
        self.touched: list[str] = []
        self.closed = False
        self.n_set_aside = self.n_dropped = 0
        self.beside = True
        self._failed: set[str] = set()
        self._lost: set[str] = set()
        self._events: deque[Event] = deque()
        there = sorted(disk.values(), key=lambda kept: kept.head.depth)
        self.unlisted = deque(there[i : i + at_once] for i in range(0, len(there), at_once))
        self.unlisted.append([])

    @property
    def used_bytes(self) -> int:
        return self.elsewhere + sum(kept.n_bytes for kept in self.disk.values())

    @property
    def has_news(self) -> bool:
        return bool(self._events)

    def next_event(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def read(self, head: Head) -> None:
        self.reads[head.id] = head

    def withdraw(self, id: str) -> bool:
        return self.reads.pop(id, None) is not None

    def write(self, order: Order) -> None:
        coming = {one.id for kind, one in self.orders if kind == "write"}
        assert order.base == "" or order.base in self.disk.keys() | coming | self._failed | self._lost
        self.written.append(order.id)
        self.all_orders.append(order)
        self.orders.append(("write", order))

    def delete(self, id: str) -> None:
        self.deleted.append(id)
        if self.writable:
            self.orders.append(("delete", id))

    def touch(self, id: str) -> None:
        self.touched.append(id)

    def drop(self) -> None:
        self.n_dropped += 1

    def give_way(self, beside: bool) -> None:
        self.beside = beside

    def set_aside(self) -> None:
        self.n_set_aside += 1
        self.orders.append(("set aside", ""))

    def close(self, seconds: float) -> None:
        while self.orders:
            self.carry_out()
        self.closed = True

    # --- what a test lets happen -------------------------------------------------------------------------------------

    def list_next(self) -> bool:
        """Tell of a few that were there at start; False where all is told."""
        if not self.unlisted:
            return False
        batch = self.unlisted.popleft()
        there = [(kept.head, kept.tokens, kept.n_bytes) for kept in batch]
        self._events.append(Listed(there, whole=not self.unlisted))
        return True

    def carry_out(self, done: bool = True, full: bool = False) -> bool:
        """The next order; False where there is none."""
        if not self.orders:
            return False
        kind, order = self.orders.popleft()
        if kind == "delete":
            self.disk.pop(order, None)
            return True
        if kind == "set aside":
            self._failed |= self.disk.keys()
            self.disk.clear()
            return True
        if not done or order.base in self._failed or self.used_bytes + order.file_bytes > self.max_bytes:
            self._failed.add(order.id)
            self._events.append(Written(order.id, None, full))
            return True
        head = Head(
            id=order.id,
            base=order.base,
            root=order.root,
            start=order.start,
            stop=order.start + len(order.tokens),
            depth=order.depth,
            n_bytes=len(order.state),
            state_xxh3_128=xxhash.xxh3_128_hexdigest(order.state),
            base_root=order.base_root,
        )
        self.disk[order.id] = Kept(head, order.tokens, order.file_bytes, order.state)
        self._events.append(Written(order.id, head))
        return True

    def bring(self, done: bool = True) -> bool:
        """What was asked for first; False where nothing was."""
        if not self.reads:
            return False
        id, _ = self.reads.popitem(last=False)
        kept = self.disk.get(id) if done else None
        self._events.append(Brought(id, None if kept is None else kept.state, 0.01))
        return True

    def lose(self, id: str) -> None:
        """An entry, which nobody notices before it is read."""
        del self.disk[id]
        self._lost.add(id)

    def run(self) -> None:
        """All that can happen without anybody's asking for more."""
        while self.list_next() or self.carry_out() or self.bring():
            pass
