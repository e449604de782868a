"""The prefix cache with a disk below host RAM: what is written, what is brought back, what goes.

One tree finds both. A state may be in RAM, on the disk or in both; what none of them has is not in the tree. What is on
the disk continues only what is there too, so an entry is whole with those it names.

Written is what was used again, what was computed again after it had been lost, and, while nobody computes, the rest:
traffic without a hit writes next to nothing. On the disk, as in RAM, what is cheapest to lose goes first.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable

from llamafast._core.context import UNLIMITED
from llamafast._core.states import State
from llamafast.engine.cache import Part, PrefixCache
from llamafast.engine.disk import DiskStore
from llamafast.engine.disk_admission import DiskAdmission
from llamafast.engine.disk_entries import DiskEntries, Entry, continues, index_bytes
from llamafast.engine.disk_entry import Head
from llamafast.engine.disk_events import Brought, Listed, Written
from llamafast.engine.disk_traffic import DiskTraffic
from llamafast.engine.prefix_key import is_private

logger = logging.getLogger(__name__)

# Of RAM, whatever its budget: states go to the disk and come from there through it.
LEAST_RAM = 256 * 2**20
# The part of RAM that the tokens of what is on the disk alone may take.
INDEX_SHARE = 10
# llama.cpp takes none of so many states in a row that it has written itself: it is another one than the folder says.
REFUSALS = 3
# Between two looks whether all that is on the disk is known, at the end.
CLOSING_SECONDS = 0.002

COUNTED = (
    "disk_hits", "disk_loads", "disk_load_failures", "disk_save_failures", "disk_tokens_loaded", "prefix_hits_disk",
    "disk_late", "disk_wasted", "disk_orphans",
)  # fmt: skip


class TieredCache(PrefixCache):
    """A PrefixCache over a DiskStore; prefixes of fewer than ``min_tokens`` are not written, nor what is not back much
    sooner than computed, by ``row_seconds``. Engine thread only, but for ``has_news`` and the counts."""

    brings = True

    def __init__(
        self,
        budget: int,
        store: DiskStore,
        min_tokens: int,
        *,
        row_seconds: Callable[[], float] = float,
        n_cuttable: int = UNLIMITED,
        in_parts: bool = True,
    ) -> None:
        super().__init__(max(budget, LEAST_RAM), n_cuttable=n_cuttable, in_parts=in_parts)
        self._store = store
        self._min_tokens = min_tokens
        self._states: set[State] = set()
        self._entries = DiskEntries(self._left)
        self._traffic = DiskTraffic(store, self.budget // 2, row_seconds)
        self._admission = DiskAdmission(
            store, self._tree, self._entries, self._traffic, cuts_anywhere=self.cuts_anywhere
        )
        self._candidates = self._admission.candidates
        self._n_refused = 0  # in a row, of what had just come from the disk
        self._n_bare = 0  # states whose bytes are on the disk alone
        self._tiers = dict.fromkeys(COUNTED, 0)

    def counts(self) -> dict[str, float]:
        counts = super().counts() | self._tiers | self._admission.counts | self._store.counts
        counts["cache_states"] -= self._n_bare
        counts["disk_entries"] = len(self._entries.by_id) - self._traffic.n_queued
        counts["disk_evictions"] = self._entries.n_evicted
        counts["disk_queue_bytes"] = self._traffic.queued_bytes
        return counts

    def find(self, tokens: array[int], salt: bytes, more_than: int) -> list[Part]:
        found = super().find(tokens, salt, more_than)
        bare = any(part.state.saved is None for part in found)
        return [] if bare and found[-1].stop < self._min_tokens else found

    def use(self, found: list[Part]) -> None:
        super().use(found)
        self._tiers["disk_hits"] += any(part.state.saved is None for part in found)
        for part in found:
            entry: Entry | None = part.state.entry
            if entry is None:
                if part.state in self._candidates:
                    self._admission.write(part.state)
                continue
            self._entries.value(part.state, entry)
            self._traffic.touch(entry)

    def saved(self, state: State) -> bytes | memoryview | None:
        if state.saved is not None or not state.kept:
            return state.saved
        entry: Entry = state.entry
        if entry.saved is not None:
            return entry.saved
        if self._traffic.is_late(entry):
            self._tiers["disk_late"] += self._traffic.give_up(entry)
            return b""
        if entry.asked_at is None:
            self._traffic.ask(entry)
        return None

    def put(self, tokens: array[int], salt: bytes, saved: bytes) -> State:
        state = super().put(tokens, salt, saved)
        if state.kept:
            self._states.add(state)
            is_candidate = not is_private(salt) and state.stop >= self._min_tokens
            if is_candidate and self._candidates.add(state, tokens, self._root(salt)):
                self._admission.write(state)
        return state

    def let_go(self, state: State) -> None:
        super().let_go(state)
        if state.entry is not None and state not in self._held:
            self._traffic.withdraw(state.entry)
        self._shrink()

    def let_go_of_all(self) -> None:
        super().let_go_of_all()
        self._shrink()

    def restored(self, state: State, n_tokens: int) -> None:
        entry: Entry | None = state.entry
        if entry is not None and entry.fresh:
            entry.fresh = False
            self._n_refused = 0
            self._tiers["prefix_hits_disk"] += n_tokens

    def refused(self, state: State) -> None:
        """What has just come from the disk would be refused again, and so would what continues it; else it may be that
        there were no cells."""
        if not (state.kept and state.entry is not None and state.entry.fresh):
            return
        self._tiers["disk_load_failures"] += 1
        self._n_refused += 1
        if self._n_refused < REFUSALS:
            self._lose_all(state)
            return
        logger.error("disk     llama.cpp refuses what it has written: it is set aside")
        self._n_refused = 0
        self._store.set_aside()
        self.clear()

    def clear(self) -> int:
        n_bytes = self.used_bytes
        self.let_go_of_all()
        self._entries.clear()
        for state in list(self._states):
            self._drop(state)
        self._leaves.clear()
        self._candidates.forget()
        return n_bytes

    @property
    def has_news(self) -> bool:
        return self._store.has_news

    def settle(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (event := self._store.next_event()) is not None:
            match event:
                case Listed(entries, whole):
                    for head, tokens, n_bytes in entries:
                        self._adopt(head, tokens, n_bytes)
                    self._admission.listed |= whole
                    self._fit_index()
                case Written(id, head, full):
                    self._written(id, head, full)
                case Brought():
                    self._brought(event)
            if time.monotonic() >= until:
                return

    @property
    def wants_idle(self) -> bool:
        return self._admission.wants_idle

    def settle_idle(self) -> None:
        self._admission.write_idle()

    def close(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (self._store.is_listing or self._store.has_news) and time.monotonic() < until:
            self.settle(seconds)
            time.sleep(CLOSING_SECONDS)
        self._admission.write_rest()
        self._store.close(seconds)

    def _adopt(self, head: Head, tokens: array[int], n_bytes: int) -> None:
        """Find a place for an entry that was there at start."""
        if head.id in self._entries.by_id:
            return
        base = self._entries.by_id.get(head.base)
        path, root = (tokens[:0], bytes.fromhex(head.root)) if base is None else self._tree.tokens(base)
        if head.root != root.hex() or (base is None) != (head.base == "") or head.start > len(path):
            self._tiers["disk_orphans"] += 1
            self._store.delete(head.id)
            return
        path = path[: head.start] + tokens
        state = self._tree.ending(path, root)
        if state is None:
            n_own = head.stop - head.start
            state = State(None, base, head.start, head.stop, spares=n_own, n_bytes=index_bytes(n_own))
            self._tree.add(path, root, state)
            self._states.add(state)
            self._count(state, 1)
            self._n_bare += 1
        elif state.entry is not None or state.start != head.start or state.base is not base:
            self._store.delete(head.id)
            return
        self._candidates.discard(state)
        self._entries.enter(state, Entry(head.id, n_bytes, head))
        self._entries.wait(state)

    def _written(self, id: str, head: Head | None, full: bool) -> None:
        self._traffic.written(id)
        state = self._entries.by_id.get(id)
        if state is None:
            return
        entry: Entry = state.entry
        saved, entry.saved = entry.saved, None
        if head is not None:
            entry.head = head
            self._entries.wait(state)
            self._fit_index()
            if not self.in_parts:
                self._admission.supersede(state)
            return
        self._tiers["disk_save_failures"] += 1
        if state.saved is None:
            assert saved is not None, "it was being written"
            self._fill(state, saved)
        self._entries.leave(state)
        self._candidates.add_tried(state)
        if full:
            self._entries.shrink(self._entries.n_bytes * 9 // 10, self.budget)
            self._admission.write(state, limited=False, again=True)
        self._shrink()

    def _brought(self, event: Brought) -> None:
        state = self._entries.by_id.get(event.id)
        if state is None or state.saved is not None:
            return
        entry: Entry = state.entry
        self._traffic.come(entry)
        if event.state is None:
            self._tiers["disk_load_failures"] += 1
            if event.lost:
                self._lose_all(state)
            else:
                self._traffic.give_up(entry)
            return
        self._traffic.learn(entry.n_bytes, event.seconds)
        self._tiers["disk_loads"] += 1
        self._tiers["disk_tokens_loaded"] += state.stop - state.start
        entry.fresh = True
        self._fill(state, event.state)
        self._shrink()

    def _fill(self, state: State, saved: bytes | memoryview) -> None:
        """Its bytes are in RAM again."""
        state.fill(saved)
        self.used_bytes += len(saved)
        self._n_bare -= 1
        if state.base is not None:
            state.base.n_heirs += 1
        self._value(state)
        self._wait(state)

    def _lose(self, state: State) -> None:
        if state.uses > 1 and self._candidates.is_untried(state):
            self._admission.write(state)
        if state.entry is not None:
            self._tiers["disk_wasted"] += state.entry.fresh
            state.entry.fresh = False
            self.used_bytes -= state.empty()
            self._n_bare += 1
            self._leave_base(state)
            self._entries.wait(state)
            return
        if state in self._candidates:
            self._candidates.lose(*self._tree.tokens(state))
        self._drop(state)

    def _drop(self, state: State) -> None:
        self._states.discard(state)
        self._candidates.discard(state)
        self._n_bare -= state.saved is None
        super()._drop(state)

    def _wait(self, state: State) -> None:
        if state.saved is not None:
            super()._wait(state)
        if state.entry is not None:
            self._entries.wait(state)

    def _root(self, salt: bytes) -> bytes:
        return self._store.folder.root(salt)

    def _fit_index(self) -> None:
        """What was found is too much for RAM, or for the folder."""
        most = self._admission.most_bytes if self._admission.listed else self._entries.n_bytes
        self._entries.shrink(most, self.budget // INDEX_SHARE)

    def _left(self, state: State, entry: Entry) -> None:
        """Its entry goes."""
        self._store.delete(entry.id)
        self._traffic.written(entry.id)
        self._traffic.come(entry)
        if state.saved is not None:
            self._candidates.add_tried(state)
        elif state.kept:
            self._drop(state)

    def _lose_all(self, state: State) -> None:
        """Forget a state that is good for nothing, and all that continue it."""
        gone = [one for one in self._states if continues(one, state)]
        for one in (one for one in gone if one.entry is not None):
            self._entries.leave(one)
        for one in (one for one in gone if one.kept):
            self._drop(one)
