"""Where the states of a prefix cache are: in RAM, on the disk, or in both.

One tree finds all of them. What is on the disk continues only what is there too, so an entry is whole with those it
names; a state whose bytes are on the disk alone is bare.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

from llamafast._core.invocation import Invocation
from llamafast._core.states import State
from llamafast.engine.cache import PrefixCache
from llamafast.engine.disk import DiskStore
from llamafast.engine.disk_admission import DiskAdmission
from llamafast.engine.disk_entries import DiskEntries, Entry, continues
from llamafast.engine.disk_traffic import DiskTraffic
from llamafast.engine.kv_log import DISK, RAM

# Salts that are remembered, at least.
MIN_SALTS = 64
# Of RAM, whatever its budget: states go to the disk and come from there through it.
LEAST_RAM = 256 * 2**20
COUNTED = (
    "disk_hits", "disk_loads", "disk_load_failures", "disk_save_failures", "disk_tokens_loaded", "prefix_hits_disk",
    "disk_late", "disk_wasted", "disk_orphans",
)  # fmt: skip


class PlacedCache(PrefixCache):
    """A PrefixCache that may lose a state's bytes and keep its place. ``min_tokens`` and ``row_seconds`` are as a
    TieredCache has them."""

    brings = True

    def __init__(
        self,
        budget: int,
        store: DiskStore,
        min_tokens: int,
        *,
        row_seconds: Callable[[], float],
        n_cuttable: int,
        in_parts: bool,
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
        self._n_bare = 0
        self._salts: dict[bytes, bytes] = {}
        self._most_salts = MIN_SALTS
        self._tiers = dict.fromkeys(COUNTED, 0)

    def counts(self) -> dict[str, float]:
        counts = super().counts() | self._tiers | self._admission.counts | self._store.counts
        counts["cache_states"] -= self._n_bare
        counts["disk_entries"] = len(self._entries.by_id) - self._traffic.n_queued
        counts["disk_evictions"] = self._entries.n_evicted
        counts["disk_queue_bytes"] = self._traffic.queued_bytes
        return counts

    def unsaved(self, tokens: array[int], salt: bytes, invoked: Invocation | None = None) -> tuple[int, int]:
        """What of them is on the disk alone, all of it, and is not brought from there, comes first; of memory that
        cannot be cut, where that is its end."""
        part, end = self._base(tokens, salt, invoked) if self.budget and self.in_parts else (None, 0)
        lowest: State | None = None
        can_be_cut = len(tokens) <= self.n_cuttable
        while part is not None:
            if part.stop <= end and self._is_given_up(part) and (can_be_cut or part.stop == len(tokens)):
                lowest = part
            end, part = part.start, part.base
        return super().unsaved(tokens, salt, invoked) if lowest is None else (lowest.start, lowest.stop)

    def _base(self, tokens: array[int], salt: bytes, invoked: Invocation | None) -> tuple[State | None, int]:
        """Of what nobody brings a part is not to be had, nor the whole by whoever has other tokens behind that part."""
        state, stop = super()._base(tokens, salt, invoked)
        while state is not None and state.stop > stop and self._is_given_up(state):
            stop, state = state.start, state.base
        return state, stop

    def _root(self, salt: bytes) -> bytes:
        root = self._store.folder.root(salt)
        self._salts[root] = salt
        if len(self._salts) > self._most_salts:
            kept = set(self._tree.salts()) | {root}
            self._salts = {root: salt for root, salt in self._salts.items() if root in kept}
            self._most_salts = 2 * len(self._salts) + MIN_SALTS
        return root

    def _salt_of(self, root: bytes) -> bytes:
        return self._salts.get(root, b"")

    def _fill(self, state: State, saved: bytes | memoryview) -> None:
        """Its bytes are in RAM again."""
        state.fill(saved)
        if state.entry is not None:
            state.entry.wanted_at, state.entry.given_up = None, False
        self.used_bytes += len(saved)
        self._n_bare -= 1
        self._note(RAM, state)
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
            self._note_loss(RAM, state)
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

    def _left(self, state: State, entry: Entry) -> None:
        """Its entry goes."""
        self._note_loss(DISK, state)
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

    def _is_given_up(self, state: State) -> bool:
        """Whether its bytes are on the disk, and nobody waits for them."""
        bare = state.saved is None and state.entry is not None and state.entry.saved is None
        return bare and (state.stop < self._min_tokens or state.entry.given_up)
