"""Who waited for the prefix of a sequence that leaves: what it takes of the cache then, and what it looks at only."""

from __future__ import annotations

from engine.test_cache import LONG, keep
from engine.test_handles import FakeRunner, FakeSequence
from engine.test_prefill import FakePrefiller
from llamafast.engine.cache import PrefixCache
from llamafast.engine.kv_transfer import KVTransfer
from llamafast.engine.pace import Pace
from llamafast.engine.prefill import PrefillQueue


class FakeLeaders(FakeRunner):
    """All that run but the first wait for it, until it leaves."""

    row_seconds = 0.01

    def add(self, sequence, n_found, apart):
        super().add(sequence, n_found, apart=False)

    def followers(self, sequence):
        return self.running[1:] if sequence is self.running[0] else []

    def leader(self, sequence):
        return None

    def withdraw(self, sequence):
        self.remove(sequence)


def test_a_prefix_counts_as_often_as_it_is_taken():
    cache = PrefixCache(10**6)
    keep(cache, LONG)
    prefills = PrefillQueue(FakePrefiller(), cache, Pace())
    transfer = KVTransfer(FakeLeaders(), cache, Pace(), prefills)
    leader, follower = (FakeSequence([*LONG, *range(first, first + 300)]) for first in (300, 400))
    transfer.start(leader)
    transfer.start(follower)
    assert transfer.counts()["cache_restores"] == 2
    transfer.discard(leader)
    assert transfer.counts()["cache_restores"] == 3
