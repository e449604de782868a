"""The prefix cache with a disk below host RAM: what is written, what is brought back, what goes.

Written is what was used again, what was computed again after it had been lost, and, while nobody computes, the rest:
traffic without a hit writes next to nothing. On the disk, as in RAM, what is cheapest to lose goes first.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable
from itertools import takewhile

from llamafast._core.context import UNLIMITED
from llamafast._core.invocation import Invocation
from llamafast._core.states import State
from llamafast.engine.cache import Part
from llamafast.engine.disk import DiskStore
from llamafast.engine.disk_entries import Entry, index_bytes
from llamafast.engine.disk_entry import Head
from llamafast.engine.disk_events import Brought, Listed, Written
from llamafast.engine.disk_places import PlacedCache
from llamafast.engine.kv_log import DISK
from llamafast.engine.prefix_key import is_private, salt_at
from llamafast.engine.save_points import MIN_TOKENS

logger = logging.getLogger(__name__)

# The part of RAM that the tokens of what is on the disk alone may take.
INDEX_SHARE = 10
# llama.cpp takes none of so many states in a row that it has written itself: it is another one than the folder says.
REFUSALS = 3
# Between two looks whether all that is on the disk is known, at the end.
CLOSING_SECONDS = 0.002


class TieredCache(PlacedCache):
    """A PrefixCache over a DiskStore; prefixes of fewer than ``min_tokens`` are not written, nor what is not back much
    sooner than computed, by ``row_seconds``. Engine thread only, but for ``has_news`` and the counts."""

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
        super().__init__(budget, store, min_tokens, row_seconds=row_seconds, n_cuttable=n_cuttable, in_parts=in_parts)
        self._n_refused = 0  # in a row, of what had just come from the disk
        self._forgets = False  # what is still being listed
        self._cleared: set[str] = set()  # ordered before the last time that the disk was full

    def find(self, tokens: array[int], salt: bytes, more_than: int, invoked: Invocation | None = None) -> list[Part]:
        found = super().find(tokens, salt, more_than, invoked)
        bare = any(part.state.saved is None for part in found)
        if not bare or found[-1].stop >= self._min_tokens:
            return found
        here = list(takewhile(lambda part: part.state.saved is not None, found))
        return here if here and here[-1].stop >= more_than + MIN_TOKENS else []

    def use(self, found: list[Part]) -> None:
        super().use(found)
        self._tiers["disk_hits"] += any(_comes_from_disk(part.state) for part in found)
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
        self._traffic.wait(entry)
        self._ask(state, self.budget)
        return None

    def ask(self, state: State) -> None:
        # who runs finds room beside what is brought for those who wait to
        self._ask(state, self.budget // 2)

    def _ask(self, state: State, most: int) -> None:
        entry: Entry | None = state.entry
        if state.saved is None and entry is not None and entry.saved is None:
            held = sum(len(one.saved) for one in self._held if one.saved is not None)
            self._traffic.ask(entry, most, held)

    def give_way(self, beside: bool) -> None:
        self._store.give_way(beside)

    def put(self, tokens: array[int], salt: bytes, saved: bytes, invoked: Invocation | None = None) -> State:
        own = salt_at(len(tokens), salt, invoked)
        known = self._tree.ending(tokens, self._root(own))
        if known is not None and known.saved is None and known.entry.saved is None:
            self._fill(known, saved)
            self._shrink()
            return known
        state = self._keep(tokens, salt, saved, invoked)
        self._states.add(state)
        is_candidate = not is_private(own) and state.stop >= self._min_tokens
        if is_candidate and self._candidates.add(state, tokens, self._root(own)):
            self._admission.write(state)
        self._shrink()
        return state

    def let_go(self, state: State) -> None:
        super().let_go(state)
        if state.entry is not None and state not in self._held:
            self._traffic.withdraw(state.entry)
        self._shrink()

    def let_go_of_all(self) -> None:
        for state in self._held:
            if state.entry is not None:
                self._traffic.withdraw(state.entry)
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
        self._forgets = not self._admission.listed
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
                        if self._forgets:
                            self._store.delete(head.id)
                        else:
                            self._adopt(head, tokens, n_bytes)
                    self._admission.listed |= whole
                    self._forgets = self._forgets and not whole
                    self._fit_index()
                    self._shrink()
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
        self._store.close(max(0.0, until - time.monotonic()))

    def _adopt(self, head: Head, tokens: array[int], n_bytes: int) -> None:
        """Find a place for an entry that was there at start."""
        if head.id in self._entries.by_id:
            return
        base = self._entries.by_id.get(head.base)
        path, root = (tokens[:0], bytes.fromhex(head.root)) if base is None else self._tree.tokens(base)
        if base is not None and head.base_root == root.hex():
            root = bytes.fromhex(head.root)
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
        self._note(DISK, state)

    def _written(self, id: str, head: Head | None, full: bool) -> None:
        self._traffic.written(id)
        state = self._entries.by_id.get(id)
        if state is None:
            return
        entry: Entry = state.entry
        saved, entry.saved = entry.saved, None
        if head is not None:
            entry.head = head
            self._note(DISK, state)
            self._entries.wait(state)
            if not self.in_parts:
                self._admission.supersede(state)
            self._fit_index()
            return
        failed = self._failed(state, entry, saved)
        if full:
            if id not in self._cleared:
                # what was ordered before a tenth went says nothing of the room there is now
                self._cleared = self._traffic.queued
                self._entries.shrink(self._entries.n_bytes * 9 // 10, self.budget)
            for one in failed:
                self._admission.write(one, limited=False, again=True)
        self._shrink()

    def _failed(self, state: State, entry: Entry, saved: bytes | memoryview | None) -> list[State]:
        """It is not on the disk, and will not be; nor will what was to be written upon it. All of these."""
        heirs = [one for one in self._entries.by_id.values() if one.entry.base is entry] if entry.n_heirs else []
        failed = [state]
        for heir in heirs:
            own: Entry = heir.entry
            self._traffic.written(own.id)
            bytes_of_it, own.saved = own.saved, None
            failed += self._failed(heir, own, bytes_of_it)
        self._tiers["disk_save_failures"] += 1
        if state.saved is None:
            assert saved is not None, "it was being written"
            self._fill(state, saved)
        self._entries.leave(state)
        self._candidates.add_tried(state)
        return failed

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
            elif state in self._held:
                self._traffic.give_up(entry)
            return
        self._traffic.learn(entry.n_bytes, event.seconds)
        self._tiers["disk_loads"] += 1
        self._tiers["disk_tokens_loaded"] += state.stop - state.start
        entry.fresh = True
        self._fill(state, event.state)
        self._shrink()

    def _fit_index(self) -> None:
        """What was found is too much for RAM, or for the folder."""
        most = self._admission.most_bytes if self._admission.listed else self._entries.n_bytes
        self._entries.shrink(most, self.budget // INDEX_SHARE)


def _comes_from_disk(state: State) -> bool:
    return state.saved is None or (state.entry is not None and state.entry.fresh)
