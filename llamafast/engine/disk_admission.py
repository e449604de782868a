"""Which states are written to the disk, and when."""

from __future__ import annotations

from collections.abc import Iterator

from llamafast._core.states import PrefixTree, State
from llamafast.engine.disk import DiskStore, new_id
from llamafast.engine.disk_candidates import Candidates
from llamafast.engine.disk_entries import DiskEntries, Entry, order_of
from llamafast.engine.disk_traffic import DiskTraffic

# While nobody computes so many are ordered at a time: whoever comes then does not wait behind more.
IDLE_BYTES = 32 * 10**6

COUNTED = ("disk_save_requests", "disk_dropped_queue", "disk_dropped_budget", "disk_dropped_worth")


class DiskAdmission:
    """Has candidates written: what is used again or was lost before by whoever knows of it, the rest while nobody
    computes. Nothing is before it is ``listed`` what there is.

    ``cuts_anywhere``: a longer state has all that a shorter one has.
    """

    def __init__(
        self, store: DiskStore, tree: PrefixTree, entries: DiskEntries, traffic: DiskTraffic, *, cuts_anywhere: bool
    ) -> None:
        self.listed = False
        self.candidates = Candidates()
        self.counts = dict.fromkeys(COUNTED, 0)
        self._store = store
        self._tree = tree
        self._entries = entries
        self._traffic = traffic
        self._cuts_anywhere = cuts_anywhere

    @property
    def is_open(self) -> bool:
        return self._store.writable and self.listed

    @property
    def wants_idle(self) -> bool:
        return self.is_open and not self._traffic.n_queued and self.candidates.has_untried

    @property
    def most_bytes(self) -> int:
        """What other namespaces leave for this one."""
        return self._store.max_bytes - self._store.elsewhere

    def write_idle(self) -> None:
        """What is worth most, some of it; each once."""
        if not self.wants_idle or self._store.write_paused:
            return
        for state in self.candidates.by_worth():
            if self.candidates.is_untried(state):
                if state.saved is not None and not self._traffic.takes(len(state.saved)):
                    return
                self.candidates.add_tried(state)  # whatever comes of it
                self.write(state)
            if self._traffic.queued_bytes >= IDLE_BYTES:
                return

    def write_rest(self) -> None:
        for state in self.candidates.by_worth():
            self.write(state, limited=False)

    def write(self, state: State, *, limited: bool = True, again: bool = False) -> None:
        """Have a state written, and before it what it continues; ``limited`` to what the queue takes, ``again`` where
        the disk was full."""
        chain: list[State] = []
        part: State | None = state
        while part is not None and part.entry is None:
            chain.append(part)
            part = part.base
        for one in reversed(chain):
            if not self._write_one(one, limited, again):
                return

    def supersede(self, state: State) -> None:
        """A whole state is on the disk. Of those before it the shortest, of the system prompt, and what the last turn
        began with and has added are of use; those between leave first, unless somebody uses them."""
        before = [one for one in self._before(state) if one.entry is not None]
        used = next((i for i, one in enumerate(before) if one.uses > 1 or self._cuts_anywhere), len(before))
        for one in before[used + (not self._cuts_anywhere) : -1]:
            self._entries.devalue(one)

    def _before(self, state: State) -> Iterator[State]:
        """The states that end within another's tokens, the longest first."""
        path, root = self._tree.tokens(state)
        one: State | None = state
        while one is not None:
            one, _ = self._tree.find(path, root, one.stop - 1, 0)
            if one is not None:
                yield one

    def _write_one(self, state: State, limited: bool, again: bool) -> bool:
        """Whether it is on its way."""
        saved = state.saved
        if saved is None or not self.is_open:
            return False
        if self._store.write_paused:
            self._store.drop()
            return False
        if limited and not self._traffic.takes(len(saved)):
            self.counts["disk_dropped_queue"] += 1
            return False
        if not self._traffic.pays(len(saved), state.stop - state.start):
            self.counts["disk_dropped_worth"] += 1
            return False
        path, root = self._tree.tokens(state)
        base_root = root if state.base is None else self._tree.tokens(state.base)[1]
        order = order_of(state, new_id(), path, root, base_root, again=again)
        if not self._entries.make_room(state, order.file_bytes, self.most_bytes):
            self.counts["disk_dropped_budget"] += 1
            return False
        self.candidates.discard(state)
        self._entries.enter(state, Entry(order.id, order.file_bytes, None, saved))
        self.counts["disk_save_requests"] += 1
        self._traffic.write(order)
        return True
