"""Prefixes of requests that have ended, kept in host RAM.

A prefix that stays in KV cells makes every decode slower: each row looks at every cell up to the highest used one. In
RAM it costs nothing until it is wanted, and taking it back is hundreds of times faster than computing it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from llamafast._core.prefix import PrefixIndex, common_prefix

# The index knows 256 owners.
MAX_ENTRIES = 256
# Fewer tokens are computed as fast as they are found.
MIN_TOKENS = 32
# A state is restored whole and then cut, at about a thousandth of what computing it takes: the rest must be worth it.
MAX_WASTE = 64


class Entry(NamedTuple):
    """The state of ``tokens`` as the Runner saved it."""

    tokens: array[int]
    saved: bytes


class PrefixCache:
    """At most ``budget`` bytes of saved states, least recently used ones going first. Engine thread only.

    A look-up costs O(n / 16) in the prompt's length, whatever is stored, and every hit is compared token by token.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used_bytes = 0
        self.restored_tokens = 0
        self.evictions = 0
        self._index = PrefixIndex()
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._free = list(range(MAX_ENTRIES))

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, tokens: array[int], more_than: int) -> tuple[bytes, int] | None:
        """The state that begins with most of ``tokens`` and how many that are; None where it is not ``more_than``.

        The last token does not count: it is always computed, as logits are not kept.
        """
        prompt = tokens[:-1]
        best: tuple[int, int, int] | None = None
        for slot in self._owners(prompt):
            stored = self._entries[slot].tokens
            common = common_prefix(prompt, stored)
            if common > more_than and common >= MIN_TOKENS and common * MAX_WASTE >= len(stored):
                best = max(best or (0, 0, 0), (common, -len(stored), slot))
        if best is None:
            return None
        common, _, slot = best
        self._entries.move_to_end(slot)
        return self._entries[slot].saved, common

    def wants(self, tokens: array[int], n_bytes: int) -> bool:
        """Whether a state of ``tokens`` would be news, and small enough."""
        if len(tokens) < MIN_TOKENS or n_bytes > self.budget:
            return False
        for slot in self._owners(tokens):
            if common_prefix(tokens, self._entries[slot].tokens) == len(tokens):
                self._entries.move_to_end(slot)
                return False
        return True

    def put(self, tokens: array[int], saved: bytes) -> None:
        """Keep a state that ``wants`` approved; what it continues is not kept twice."""
        for slot in list(self._owners(tokens)):
            stored = self._entries[slot].tokens
            if common_prefix(tokens, stored) == len(stored):
                self._drop(slot)
        while self._entries and (self.used_bytes + len(saved) > self.budget or not self._free):
            self._drop(next(iter(self._entries)))
            self.evictions += 1
        slot = self._free.pop()
        self._entries[slot] = Entry(tokens, saved)
        self._index.insert(slot, tokens)
        self.used_bytes += len(saved)

    def _owners(self, tokens: array[int]) -> Iterable[int]:
        return self._index.find(tokens)[1]

    def _drop(self, slot: int) -> None:
        entry = self._entries.pop(slot)
        self._index.remove(slot, entry.tokens)
        self._free.append(slot)
        self.used_bytes -= len(entry.saved)
