"""What a TieredCache finds on its disk, and brings from there in time, late or never."""

from __future__ import annotations

import pytest

from engine.test_cache import LONG, keep, tokens
from engine.test_disk_tier import BYTES, FILE, happen, kept_first, remember, restarted, tiered, used
from engine.test_handles import AT_ONCE, FakeSequence, compute, run_through, transfer_of
from llamafast.engine import disk_tier, disk_traffic
from llamafast.engine.kv_transfer import Parts

pytestmark = pytest.mark.usefixtures("little_ram")


def test_after_a_restart_what_was_written_is_found_and_brought():
    disk = {}
    cache, store = tiered(disk=disk)
    remember(cache, 1, letter=b"a")
    remember(cache, 1, range(100), letter=b"b")
    remember(cache, 1, range(100), salt=b"salt", letter=b"c")
    cache.close(1.0)
    cache, store = tiered(disk=disk)
    assert cache.counts()["cache_states"] == 0
    found = cache.find(tokens([1], LONG, range(100), [1]), b"", 0)
    assert [(part.start, part.stop) for part in found] == [(0, 201), (201, 301)]
    held = Parts(cache, found)
    held.ask()
    assert held.saved is None
    happen(cache, store)
    assert [cache.saved(part.state) for part in found] == [b"a" * BYTES, b"b" * BYTES]
    (part,) = cache.find(tokens([1], LONG, range(100), [1]), b"salt", 0)
    assert (part.start, part.stop) == (0, 301)
    assert not cache.find(tokens([1], LONG, range(100), [1]), b"pepper", 0)


def test_few_tokens_are_not_brought():
    disk = {}
    cache, _ = tiered(disk=disk)
    remember(cache, 1)
    cache.close(1.0)
    cache, _ = tiered(disk=disk, min_tokens=150)
    assert not cache.find(tokens([1], LONG[:148], [1]), b"", 0)
    assert cache.find(tokens([1], LONG[:149], [1]), b"", 0)


@pytest.mark.parametrize("own", [30, 300])
def test_a_prompt_that_leaves_what_is_not_brought_keeps_its_own(own):
    """The beginning of long prompts is there as a part of theirs, and too short to be brought for itself."""
    disk = {}
    cache, _ = tiered(disk=disk)
    remember(cache, 1, letter=b"a")
    remember(cache, 1, range(100), letter=b"b")
    cache.close(1.0)
    cache, _ = tiered(disk=disk, min_tokens=250)
    key = tokens([1], LONG[:50], [7] * own)
    assert not cache.find(key, b"", 0)
    start, stop = cache.unsaved(key, b"")
    assert (start, stop) == (0, len(key))
    state = cache.put(key, b"", b"c" * BYTES)
    assert (state.base, state.start, state.stop) == (None, 0, len(key))
    assert cache.unsaved(key, b"") == (0, 0)
    (part,) = cache.find(tokens(key, [1]), b"", 0)
    assert (part.state, part.start, part.stop) == (state, 0, len(key))
    # whoever has all of it fills it
    assert cache.unsaved(tokens([1], LONG, [8]), b"") == (0, 201)


def test_what_others_leave_before_its_end_is_filled_by_none_of_them():
    disk = {}
    cache, _ = tiered(disk=disk)
    remember(cache, 1, letter=b"a")
    assert keep(cache, [1], LONG[:100], [7] * 50, saved=b"b" * BYTES) == (101, 151)
    cache.close(1.0)
    cache, _ = tiered(disk=disk, min_tokens=250)
    longer = [1], LONG[:100], [7] * 50, [8] * 40
    assert keep(cache, *longer, saved=b"b" * BYTES) == (101, 151)
    assert keep(cache, *longer, saved=b"c" * BYTES) == (151, 191)
    assert keep(cache, *longer) == (0, 0)


def test_memory_that_cannot_be_cut_fills_only_what_ends_where_it_does():
    disk = {}
    cache, _ = tiered(disk=disk, n_cuttable=0)
    remember(cache, 1, letter=b"a")
    remember(cache, 1, range(100), letter=b"b")
    cache.close(1.0)
    cache, _ = tiered(disk=disk, n_cuttable=0, min_tokens=250)
    assert cache.unsaved(tokens([1], LONG, [7] * 50), b"") == (201, 251)
    assert cache.unsaved(tokens([1], LONG), b"") == (0, 201)


def test_an_entry_without_what_it_continues_is_deleted():
    _, store = restarted(1, 2)
    store.lose(next(kept.head.id for kept in store.disk.values() if kept.tokens[0] == 1))
    cache, store = tiered(disk=store.disk)
    assert cache.counts()["disk_orphans"] == 1
    assert kept_first(store) == [2]
    assert len(store.disk) == 2


def test_who_asks_for_what_has_vanished_computes_it():
    cache, store = restarted(1)
    runner, transfer = transfer_of(cache)
    base = next(kept.head.id for kept in store.disk.values() if not kept.head.base)
    store.lose(base)
    sequence = FakeSequence([1, *LONG, *range(100), 1])
    transfer.start(sequence)
    assert transfer.awaits_bytes
    happen(cache, store)
    assert transfer.has_work
    transfer.restore(AT_ONCE)
    assert not sequence.restoring
    assert not cache.n_states
    happen(cache, store)
    assert not store.disk
    compute(sequence)
    transfer.stop(sequence)
    assert cache.n_states
    assert runner.running == []


def test_nobody_waits_longer_than_the_bytes_are_worth(clock):
    cache, _ = restarted(1)
    _, transfer = transfer_of(cache)
    sequence = FakeSequence([1, *LONG, 1])
    transfer.start(sequence)
    clock.now += disk_traffic.LEAST_PATIENCE / 2
    assert not transfer.has_work
    clock.now += 10.0
    assert transfer.has_work
    transfer.restore(AT_ONCE)
    assert not sequence.restoring
    assert cache.counts()["disk_late"] > 0
    assert not cache._held


def test_nobody_waits_for_ever_behind_reads_that_do_not_come(clock):
    """A disk that hangs holds all bytes up that may be on their way at once."""
    firsts = range(1, 9)
    cache, store = restarted(*firsts, budget=200_000)
    _, transfer = transfer_of(cache)
    sequences = [FakeSequence([first, *LONG, 1]) for first in firsts]
    store.withdraw = lambda id: False  # it has begun to read them
    for sequence in sequences:
        transfer.start(sequence)
    assert store.reads
    for _ in range(50):
        clock.now += 10.0
        transfer.restore(float("inf"))
    assert [sequence for sequence in sequences if sequence.restoring] == []


def test_heirs_leave_the_disk_before_what_they_continue():
    cache, store = restarted(1, 2, budget=10**6)
    cache._entries.shrink(2 * FILE, 10**9)
    happen(cache, store)
    assert kept_first(store) == [1, 2]
    assert len(store.disk) == 2


def test_what_ram_alone_continues_stays_on_the_disk():
    cache, store = tiered()
    remember(cache, 1)
    cache.close(1.0)
    cache, store = tiered(disk=store.disk)
    remember(cache, 1, range(100))
    (base,) = cache._entries.by_id.values()
    assert (base.saved, base.n_heirs) == (None, 1)
    assert not cache._entries.evict()
    cache._drop(cache.find(tokens([1], LONG, range(100), [1]), b"", 0)[-1].state)
    assert cache._entries.evict()
    assert cache.n_states == 0


def test_with_room_for_nothing_what_is_there_goes():
    cache, store = restarted(1, 2, max_bytes=0)
    assert not store.disk
    assert cache.n_states == 0
    cache, store = restarted(1, 2, writable=False)
    assert len(store.disk) == 4
    remember(cache, 5)
    used(cache, 5)
    cache.settle_idle()
    cache.close(1.0)
    assert not store.written


def test_tokens_of_entries_take_a_part_of_ram_only(monkeypatch):
    monkeypatch.setattr(disk_tier, "INDEX_SHARE", 4)
    cache, store = restarted(*range(10), budget=20_000)
    assert 0 < cache._entries.index_bytes <= 5000
    assert len(store.disk) == len(cache._entries.by_id) == cache.n_states


def test_a_state_that_is_refused_goes_with_what_continues_it():
    cache, store = tiered()
    for first in (1, 2):
        for rest in ([], range(100)):
            run_through(transfer_of(cache)[1], [first, *LONG, *rest])
    cache.close(1.0)
    cache, store = tiered(disk=store.disk)
    assert len(store.disk) == 4
    runner, transfer = transfer_of(cache)
    sequence = FakeSequence([1, *LONG, *range(100), 1])
    transfer.start(sequence)
    happen(cache, store)
    runner.takes = False
    transfer.restore(AT_ONCE)
    happen(cache, store)
    assert kept_first(store) == [2]
    assert len(store.disk) == 2
    assert cache.counts()["disk_load_failures"] == 1


def test_where_all_is_refused_the_namespace_is_set_aside():
    firsts = range(1, 8)
    cache, store = tiered()
    for first in firsts:
        run_through(transfer_of(cache)[1], [first, *LONG])
    cache.close(1.0)
    cache, store = tiered(disk=store.disk)
    runner, transfer = transfer_of(cache)

    def ask(first, takes):
        sequence = FakeSequence([first, *LONG, 1])
        transfer.start(sequence)
        happen(cache, store)
        runner.takes = takes
        transfer.restore(AT_ONCE)
        assert not sequence.restoring
        transfer.discard(sequence)

    for first, takes in zip(firsts, [False, False, True, False, False], strict=False):
        ask(first, takes)
    assert not store.n_set_aside
    assert cache.counts()["disk_load_failures"] == 4
    ask(6, False)
    assert store.n_set_aside == 1
    assert cache.counts()["disk_load_failures"] == 5
    happen(cache, store)
    assert (cache.n_states, cache.used_bytes, store.disk) == (0, 0, {})
    run_through(transfer, [9, *LONG])
    cache.settle_idle()
    happen(cache, store)
    assert kept_first(store) == [9]


def test_what_comes_and_is_taken_by_nobody_is_counted():
    cache, store = restarted(1, 2, budget=60_000)
    _, transfer = transfer_of(cache)
    sequence = FakeSequence([1, *LONG, 1])
    transfer.start(sequence)
    happen(cache, store)
    transfer.discard(sequence)
    assert cache.counts()["disk_wasted"] == 0
    for first in range(3, 30):
        remember(cache, first)
    assert cache.counts()["disk_wasted"] == 1
    assert cache.counts()["disk_loads"] == 1


def test_to_forget_all_is_to_delete_all():
    cache, store = restarted(1, 2)
    _, transfer = transfer_of(cache)
    run_through(transfer, [5, *LONG])
    held = FakeSequence([1, *LONG, 1])
    transfer.start(held)
    assert transfer.forget_saved() > 0
    transfer.restore(AT_ONCE)
    assert not held.restoring
    happen(cache, store)
    assert not store.disk
    assert (cache.n_states, cache.used_bytes) == (0, 0)


def test_the_time_of_the_last_use_is_noted_now_and_then(clock):
    cache, store = restarted(1)
    for _ in range(3):
        used(cache, 1)
    assert len(store.touched) == 1
    clock.now += disk_traffic.TOUCH_SECONDS + 1
    used(cache, 1)
    assert len(store.touched) == 2
