"""A DiskStore that a test drives by its events, and entries whose every byte follows from their number."""

from __future__ import annotations

import random
import threading
from array import array
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from llamafast.engine.disk import DiskStore
from llamafast.engine.disk_entry import Head
from llamafast.engine.disk_events import Brought, Event, Listed, Order, Written
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.files import Files

FINGERPRINT = {"weights": "some"}
SECONDS = 30.0


def id_of(number: int) -> str:
    return f"{number:032x}"


def order_of(
    number: int, n_bytes: int = 5000, *, base: Order | None = None, n_tokens: int = 12, root: str = ""
) -> Order:
    """What is written under a number; it continues ``base`` where that ends."""
    chance = random.Random(number)
    return Order(
        id=id_of(number),
        base="" if base is None else base.id,
        root=root if base is None else base.root,
        start=0 if base is None else base.start + len(base.tokens),
        depth=0 if base is None else base.depth + 1,
        tokens=array("i", (chance.randrange(50_000) for _ in range(n_tokens))),
        state=chance.randbytes(n_bytes),
    )


class Driven:
    """A store that has begun to list; each call returns when what it asks for has happened."""

    def __init__(self, path: Path, *, max_bytes: int = 10**8, files: Files | None = None, about: object = None) -> None:
        self._news = threading.Condition()
        self.folder = DiskFolder(path, FINGERPRINT if about is None else {"weights": about}, files)
        self.store = DiskStore(self.folder, max_bytes, self._tell)
        self.store.start()

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()

    def event(self) -> Event:
        """The next one."""
        with self._news:
            assert self._news.wait_for(lambda: self.store.has_news, SECONDS), "nothing has happened"
        event = self.store.next_event()
        assert event is not None
        return event

    def listed(self) -> list[Listed]:
        """All there was at start, or has come to a reader since."""
        told = []
        while True:
            event = self.event()
            assert isinstance(event, Listed)
            told.append(event)
            if event.whole:
                return told

    def entries(self) -> dict[str, tuple[Head, array[int], int]]:
        """The same, by id."""
        return {entry[0].id: entry for told in self.listed() for entry in told.entries}

    def write(self, order: Order) -> Written:
        self.store.write(order)
        event = self.event()
        assert isinstance(event, Written)
        assert event.id == order.id
        return event

    def write_all(self, orders: Iterable[Order]) -> dict[str, Head]:
        """Heads of orders that must succeed."""
        heads = {}
        for order in orders:
            head = self.write(order).head
            assert head is not None
            heads[order.id] = head
        return heads

    def read(self, head: Head) -> bytes | None:
        self.store.read(head)
        event = self.event()
        assert isinstance(event, Brought)
        assert event.id == head.id
        return event.state

    def carried_out(self) -> None:
        """All orders until now are."""
        done = threading.Event()
        self.store._writer._order(done.set)
        assert done.wait(SECONDS)

    def delete(self, id: str) -> None:
        self.store.delete(id)
        self.carried_out()

    def close(self, seconds: float = SECONDS) -> None:
        self.store.close(seconds)

    @property
    def namespace(self) -> Path:
        return self.folder.namespace

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.namespace.iterdir()} - {"lock", "namespace.json"}


@contextmanager
def driven(path: Path, **options):
    one = Driven(path, **options)
    try:
        yield one
    finally:
        one.close()
