"""What of the prefix cache is on the disk, in which order it goes, and how much room there is."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from llamafast._core.states import State
from llamafast.engine.cache import STATE_BYTES
from llamafast.engine.disk_entry import Head
from llamafast.engine.disk_events import Order
from llamafast.engine.leaves import Leaves

_TOKEN_BYTES = array("i").itemsize


class Entry:
    """Where a state is on the disk. ``head`` is None, and ``saved`` its bytes, until it has been written there.
    ``base`` is what it was written upon, ``n_heirs`` are entries that were upon it; ``fresh``: it was brought and
    nobody has taken it yet; ``given_up``: nobody waits for it, as it did not come in time. It is asked for since
    ``asked_at``, to be there ``patience`` seconds later, and waited for since ``wanted_at``."""

    __slots__ = (
        "asked_at", "base", "fresh", "given_up", "head", "id", "n_bytes", "n_heirs", "patience", "priority", "saved",
        "touched_at", "waits", "wanted_at",
    )  # fmt: skip

    def __init__(self, id: str, n_bytes: int, head: Head | None, saved: bytes | memoryview | None = None) -> None:
        self.id = id
        self.n_bytes = n_bytes
        self.head = head
        self.saved = saved
        self.n_heirs = 0
        self.base: Entry | None = None
        self.wanted_at: float | None = None
        self.priority = 0.0
        self.waits = False
        self.fresh = self.given_up = False
        self.asked_at: float | None = None
        self.patience = 0.0
        self.touched_at = 0.0


class DiskEntries:
    """Entries by id, each of one state. What is cheapest to lose goes first, as in RAM; what is in RAM alone needs what
    it continues, wherever that is.

    ``on_leave`` is told of each state that is on the disk no more.
    """

    def __init__(self, on_leave: Callable[[State, Entry], None]) -> None:
        self.by_id: dict[str, State] = {}
        self.n_bytes = 0
        self.n_evicted = 0
        self.index_bytes = 0  # that the tokens of all of them take in RAM
        self._on_leave = on_leave
        self._leaves: Leaves[Entry] = Leaves()

    def enter(self, state: State, entry: Entry) -> None:
        """It is on the disk, or is going to be."""
        state.entry = entry
        self.by_id[entry.id] = state
        self.n_bytes += entry.n_bytes
        self.index_bytes += index_bytes(state.spares)
        if state.base is not None:
            entry.base = state.base.entry
            entry.base.n_heirs += 1
        self.value(state, entry)

    def leave(self, state: State) -> None:
        """It is in RAM alone, or nowhere, and so is what continues it, if anything."""
        entry: Entry = state.entry
        del self.by_id[entry.id]
        self.n_bytes -= entry.n_bytes
        self.index_bytes -= index_bytes(state.spares)
        state.entry = None
        if state.base is not None and entry.base is not None:
            # the state below may have another entry by now
            entry.base.n_heirs -= 1
            self.wait(state.base)
        self._on_leave(state, entry)

    def value(self, state: State, entry: Entry) -> None:
        """It was of use, or is new."""
        entry.priority = self._leaves.worth(state, entry.n_bytes)

    def devalue(self, state: State) -> None:
        """It is worth nothing until it is of use again."""
        entry: Entry = state.entry
        if not entry.waits or entry.priority > self._leaves.age:
            entry.priority, entry.waits = self._leaves.age, False
            self.wait(state)

    def wait(self, state: State) -> None:
        """Put it among those that may be evicted, if it may be."""
        entry: Entry | None = state.entry
        if entry is not None and entry.head is not None and _may_go(state, entry):
            self._leaves.add(state, entry)

    def make_room(self, state: State, n_bytes: int, most: int) -> bool:
        """Whether there is room for an entry of this state within ``most`` bytes, beside what is worth more. What it
        continues stays."""
        if n_bytes > most:
            return False
        worth = self._leaves.worth(state, n_bytes)
        continued: Entry | None = None if state.base is None else state.base.entry
        if continued is not None:
            continued.n_heirs += 1
        if self._may_leave(worth) >= self.n_bytes + n_bytes - most:
            while self.n_bytes + n_bytes > most and self.evict(worth):
                pass
        if state.base is not None and continued is not None:
            continued.n_heirs -= 1
            self.wait(state.base)
        return self.n_bytes + n_bytes <= most

    def shrink(self, most: int, most_index: int) -> None:
        """Evict what is more than so many bytes, there and here."""
        while (self.n_bytes > most or self.index_bytes > most_index) and self.evict():
            pass

    def evict(self, beyond: float = float("inf")) -> bool:
        """Let the one leave that is worth least, and no more than ``beyond``; whether there was one."""
        if (state := self._leaves.pop(_may_go, beyond)) is None:
            return False
        self.n_evicted += 1
        self.leave(state)
        return True

    def clear(self) -> None:
        for state in list(self.by_id.values()):
            self.leave(state)
        self._leaves.clear()

    def _may_leave(self, beyond: float) -> int:
        """Bytes of what is worth no more than ``beyond`` and is continued by nothing that stays, nobody holding it."""
        entries: list[Entry] = [state.entry for state in self.by_id.values()]
        stay: set[Entry] = set()
        for entry in entries:
            one: Entry | None = entry if entry.priority > beyond or entry.head is None else None
            while one is not None and one not in stay:
                stay.add(one)
                one = one.base
        return sum(entry.n_bytes for entry in entries if entry not in stay)


def index_bytes(n_tokens: int) -> int:
    """What a state of so many tokens of its own takes in RAM where its bytes are not there, about."""
    return n_tokens * _TOKEN_BYTES + STATE_BYTES


def _may_go(state: State, entry: Entry) -> bool:
    return state.entry is entry and not entry.n_heirs and (state.saved is not None or not state.n_heirs)


def order_of(state: State, id: str, path: array[int], root: bytes, base_root: bytes, *, again: bool) -> Order:
    """To write a state that has these tokens and its bytes; what it continues has an entry, and is of ``base_root``."""
    depth, part = 0, state.base
    while part is not None:
        depth, part = depth + 1, part.base
    assert state.saved is not None
    continued = "" if state.base is None else state.base.entry.id
    other = None if base_root == root else base_root.hex()
    return Order(id, continued, root.hex(), state.start, depth, path[state.start :], state.saved, again, other)


def continues(state: State, other: State) -> bool:
    """Whether it is the other one, or goes on from it."""
    part: State | None = state
    while part is not None and part is not other:
        part = part.base
    return part is other
