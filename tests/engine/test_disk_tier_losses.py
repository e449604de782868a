"""What a TieredCache makes of writes that fail, a disk that is full, bytes that come late, and what is refused."""

from __future__ import annotations

import threading

import pytest
from support.fake_store import FakeStore

from engine.test_cache import LONG, keep, tokens
from engine.test_disk_tier import BYTES, FILE, happen, kept_first, remember, restarted, tiered, used
from engine.test_handles import AT_ONCE, FakeRunner, FakeSequence, compute, run_through, transfer_of
from llamafast.engine import disk_tier, disk_traffic
from llamafast.engine.disk_tier import TieredCache
from llamafast.engine.kv_transfer import KVTransfer, Parts
from llamafast.engine.pace import Pace
from llamafast.engine.pages import LEAST_BYTES, Pages

PART_FILE = 2 * 4096  # of a part of 100 tokens that a FakeRunner has saved

pytestmark = pytest.mark.usefixtures("little_ram")


class LargeStates(FakeRunner):
    """A state of whole sequences is mostly something else than tokens."""

    def save(self, sequence, start, stop):
        return super().save(sequence, start, stop) + bytes(50_000)


def prompt(first, n_parts=1):
    """Its parts have 100 tokens, the first of them one more."""
    return [first, *range(100 * n_parts)]


def chained(n_parts, **options):
    """A cache of one prefix, of so many parts, that the disk has and RAM has not."""
    cache, store = tiered()
    _, transfer = transfer_of(cache)
    for n in range(1, n_parts + 1):
        run_through(transfer, prompt(1, n))
    cache.close(1.0)
    assert len(store.disk) == n_parts
    return tiered(disk=store.disk, **options)


# --- what cannot be written ------------------------------------------------------------------------------------------


def test_what_was_to_be_written_upon_what_failed_fails_with_it():
    cache, store = tiered(40_000)
    remember(cache, 1)
    remember(cache, 1, range(100))
    base, heir = (part.state for part in used(cache, 1, range(100)))
    for first in range(2, 8):
        remember(cache, first)
        for _ in range(9):
            used(cache, first)
    assert (base.saved, heir.saved) == (None, None)
    store.carry_out(done=False)
    store.carry_out(done=False)
    cache.settle(0.0)
    assert base.kept >= heir.kept
    assert (base.entry, heir.entry) == (None, None)
    assert cache.counts()["disk_save_failures"] == 2
    cache.settle(1.0)
    assert cache.used_bytes <= cache.budget
    used(cache, 1, range(100))
    cache.close(1.0)
    assert store.closed


def test_a_chain_whose_first_write_met_a_full_disk_is_written_after_all():
    cache, store = tiered()
    for n in range(6):
        remember(cache, 1, range(100 * n))
    used(cache, 1, range(500))
    store.carry_out(done=False, full=True)
    while store.carry_out(done=False):
        pass
    happen(cache, store)
    assert len(store.disk) == 6


def test_a_disk_that_somebody_else_has_filled_costs_a_tenth_once():
    cache, store = tiered(10**7, 10**7)
    for first in range(50):
        remember(cache, first)
        used(cache, first)
    happen(cache, store)
    for first in range(100, 110):
        remember(cache, first)
    cache.settle_idle()
    assert len(store.orders) == 10
    while store.orders:
        kind, order = store.orders[0]
        store.carry_out(done=False, full=kind == "write" and not order.again)
        if not store.orders:
            cache.settle(1.0)
    happen(cache, store)
    assert cache.counts()["disk_evictions"] == 6
    assert len(store.disk) == 44


def test_what_is_written_while_the_index_is_full_may_leave_at_once(monkeypatch):
    monkeypatch.setattr(disk_tier, "INDEX_SHARE", 10)
    cache, store = tiered(60_000, in_parts=False, n_cuttable=0)
    for first in (1, 2, 3):
        remember(cache, first)
        for _ in range(3):
            used(cache, first)
    happen(cache, store)
    remember(cache, 9)
    cache.settle_idle()
    for first in range(20, 26):
        remember(cache, first)
    (part,) = cache.find(tokens([9], LONG, [1]), b"", 0)
    assert part.state.saved is None
    store.carry_out()
    cache.settle(1.0)
    assert not part.state.kept
    assert cache._entries.index_bytes <= cache.budget // 10
    happen(cache, store)
    assert kept_first(store) == [1, 2, 3]


def test_what_the_queue_has_no_room_for_is_written_later(monkeypatch):
    monkeypatch.setattr(disk_traffic, "QUEUE_STATES", 4)
    cache, store = tiered()
    for first in range(10):
        remember(cache, first)
    for _ in range(3):
        cache.settle_idle()
        happen(cache, store)
    assert kept_first(store) == list(range(10))
    assert cache.counts()["disk_dropped_queue"] == 0


def test_what_never_fitted_beside_what_is_worth_more_is_known_when_it_is_computed_again():
    cache, store = tiered(30_000)
    for first in range(3):
        remember(cache, first)
        for _ in range(50):
            used(cache, first)
    happen(cache, store)
    remember(cache, 77)
    assert not cache.find(tokens([77], LONG, [1]), b"", 0)
    assert 77 not in kept_first(store)
    remember(cache, 77)
    happen(cache, store)
    assert 77 in kept_first(store)


def test_nothing_leaves_for_what_there_is_no_room_for_all_the_same():
    cache, store = tiered(max_bytes=12 * FILE)
    for first in range(12):
        remember(cache, first)
        for _ in range(60 if first < 6 else 1):
            used(cache, first)
    happen(cache, store)
    keep(cache, [99], LONG, range(200), saved=bytes(8 * FILE))
    for _ in range(12):
        used(cache, 99, range(200))
        happen(cache, store)
    assert kept_first(store) == list(range(12))
    assert cache.counts()["disk_evictions"] == 0


def test_what_is_worth_more_holds_what_it_continues():
    cache, store = tiered(10**7, 16 * FILE)
    for first in range(4):
        remember(cache, first)
        remember(cache, first, range(900))
        for _ in range(2):
            used(cache, first, range(900))
    for first in range(10, 14):
        remember(cache, first)
        used(cache, first)
    happen(cache, store)
    keep(cache, [99], LONG, range(200), saved=bytes(8 * FILE))
    for _ in range(20):
        used(cache, 99, range(200))
        happen(cache, store)
    assert (len(store.disk), cache.counts()["disk_evictions"]) == (12, 0)


def test_a_disk_that_was_slow_is_tried_again():
    large = bytes(2 * 2**20)
    cache, store = tiered(10**8, 10**8, row_seconds=lambda: 0.001)
    for _ in range(50):
        cache._traffic.learn(len(large), 1.0)
    for first in range(30):
        keep(cache, [first], LONG, saved=large)
        used(cache, first)
    happen(cache, store)
    assert 0 < cache.counts()["disk_dropped_worth"] < 30
    assert kept_first(store) == list(range(cache.counts()["disk_dropped_worth"], 30))


def test_what_leaves_first_is_not_noted_anew_by_every_turn():
    cache, store = tiered(10**7, 10**7, in_parts=False, n_cuttable=0)
    for turn in range(40):
        used(cache, 1, range(10 * turn))
        remember(cache, 1, range(10 * turn + 10))
        cache.settle_idle()
        happen(cache, store)
    assert len(cache._entries.by_id) == 40
    assert len(cache._entries._leaves) <= 2 * 40


# --- what does not come ----------------------------------------------------------------------------------------------


def test_parts_that_come_as_fast_as_ever_are_not_late(clock):
    n_parts = 16
    cache, store = chained(n_parts)
    cache._traffic._rate = 1e5
    _, transfer = transfer_of(cache)
    sequence = FakeSequence([*prompt(1, n_parts), 1])
    transfer.start(sequence)
    assert len(store.reads) == n_parts
    for n in range(1, n_parts + 1):
        clock.now += PART_FILE / 1e5
        assert not transfer.has_work
        store.bring()
        cache.settle(1.0)
        transfer.restore(AT_ONCE)
        assert sequence.n_past == 100 * n + 1
    assert cache.counts()["disk_late"] == 0


def test_who_is_to_run_next_goes_on_being_brought(clock):
    cache, store = chained(6)
    cache._traffic._most_asked = 4 * PART_FILE
    _, transfer = transfer_of(cache)
    sequence = FakeSequence([*prompt(1, 6), 1])
    transfer.look_ahead([sequence])
    assert len(store.reads) == 4
    happen(cache, store)
    transfer.look_ahead([sequence])
    assert len(store.reads) == 2


def test_nobody_is_late_for_who_did_not_run_yet(clock):
    cache, store = chained(6)
    cache._traffic._most_asked = 4 * PART_FILE
    _, transfer = transfer_of(cache)
    sequence = FakeSequence([*prompt(1, 6), 1])
    transfer.look_ahead([sequence])
    happen(cache, store)
    clock.now += 10.0
    transfer.start(sequence)
    while sequence.restoring:
        clock.now += 0.01
        transfer.restore(float("inf"))
        happen(cache, store)
    assert sequence.n_past == 601
    assert cache.counts()["disk_late"] == 0


def test_what_came_too_late_is_kept_in_ram_once_it_is_computed(clock):
    cache, store = restarted(1)
    store.withdraw = lambda id: False  # it has begun to read, and hangs
    _, transfer = transfer_of(cache)
    first = FakeSequence([1, *LONG, 1])
    transfer.start(first)
    assert transfer.awaits_bytes
    clock.now += 10.0
    transfer.restore(AT_ONCE)
    assert not first.restoring
    compute(first)
    transfer.stop(first)
    second = FakeSequence([1, *LONG, 1])
    transfer.start(second)
    assert transfer.has_work
    transfer.restore(AT_ONCE)
    assert second.n_past == 201


def test_whoever_asks_anew_has_not_waited_since_the_engine_was_last_cleared(clock):
    cache, store = restarted(1)
    cache._traffic.asked_bytes = 10**9
    held = Parts(cache, cache.find(tokens([1], LONG, [1]), b"", 0))
    held.ask()
    assert held.saved is None
    assert not store.reads
    cache.let_go_of_all()
    cache._traffic.asked_bytes = 0
    clock.now += 60.0
    held = Parts(cache, cache.find(tokens([1], LONG, [1]), b"", 0))
    assert held.saved is None
    assert len(store.reads) == 1


def test_what_comes_faster_than_it_is_restored_stays_within_the_budget():
    cache, store = tiered(10**7, 10**7, in_parts=False, n_cuttable=0)
    transfer = KVTransfer(LargeStates(in_parts=False), cache, Pace())
    firsts = range(12)
    for first in firsts:
        run_through(transfer, [first, *LONG[:40]])
    cache.close(1.0)
    cache, store = tiered(220_000, 10**7, disk=store.disk, in_parts=False, n_cuttable=0)
    assert len(cache._entries.by_id) == len(firsts)
    transfer = KVTransfer(LargeStates(in_parts=False), cache, Pace())
    sequences = [FakeSequence([first, *LONG[:40], 1]) for first in firsts]
    for sequence in sequences:
        transfer.start(sequence)
        happen(cache, store)
        assert cache.used_bytes <= cache.budget
    while any(sequence.restoring for sequence in sequences):
        transfer.restore(AT_ONCE)
        happen(cache, store)
        assert cache.used_bytes <= cache.budget
    assert [sequence.n_past for sequence in sequences] == [41] * len(firsts)


def test_a_finalizer_may_give_pages_back_while_others_are_taken():
    pages = Pages()

    def give_back():
        taken = [pages.take(LEAST_BYTES)]
        with pages._lock:
            taken.clear()

    thread = threading.Thread(target=give_back, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_the_end_takes_no_longer_where_the_list_does_not_come(clock):
    cache, store = tiered()
    store.is_listing = True
    left = []
    store.close = left.append
    cache.close(1.0)
    assert left == [0.0]


# --- what is no use --------------------------------------------------------------------------------------------------


def test_what_is_listed_after_all_was_forgotten_is_forgotten_too():
    cache, store = tiered()
    for first in range(6):
        remember(cache, first)
    cache.close(1.0)
    store = FakeStore(store.disk, 10**6)
    cache = TieredCache(10**6, store, 16)
    store.list_next()
    cache.settle(1.0)
    assert cache.clear() > 0
    happen(cache, store)
    assert not store.disk
    assert cache.n_states == 0
    remember(cache, 9)
    used(cache, 9)
    happen(cache, store)
    assert kept_first(store) == [9]


def test_what_is_refused_is_to_blame_however_little_ram_there_is(monkeypatch):
    monkeypatch.setattr(disk_tier, "INDEX_SHARE", 1)
    firsts = range(6)
    cache, store = tiered(in_parts=False, n_cuttable=0)
    for first in firsts:
        remember(cache, first, letter=b"\0")
    cache.close(1.0)
    cache, store = tiered(22_000, disk=store.disk, in_parts=False, n_cuttable=0)
    assert len(cache._entries.by_id) == len(firsts)
    runner, transfer = transfer_of(cache, in_parts=False)
    runner.takes = False
    sequences = [FakeSequence([first, *LONG, 1]) for first in firsts]
    for sequence in sequences:
        transfer.start(sequence)
        happen(cache, store)
    while any(sequence.restoring for sequence in sequences):
        transfer.restore(AT_ONCE)
        happen(cache, store)
    assert cache.counts()["disk_load_failures"] == disk_tier.REFUSALS
    assert store.n_set_aside == 1


@pytest.mark.parametrize("n_free", [200, 201])
def test_a_file_is_not_to_blame_where_cells_are_too_few(n_free):
    cache, store = tiered()
    run_through(transfer_of(cache)[1], [1, *LONG])
    cache.close(1.0)
    cache, store = tiered(disk=store.disk)
    runner, transfer = transfer_of(cache)
    sequence = FakeSequence([1, *LONG, 1])
    transfer.start(sequence)
    happen(cache, store)
    runner.takes, runner.n_cells = False, runner.total_cells - n_free
    transfer.restore(AT_ONCE)
    happen(cache, store)
    assert transfer.counts()["restore_failures"] == 1
    is_blamed = n_free == 201
    assert cache.counts()["disk_load_failures"] == is_blamed
    assert len(store.disk) == (not is_blamed)


# --- what is of use all the same -------------------------------------------------------------------------------------


def test_what_was_brought_ahead_comes_from_the_disk():
    cache, store = restarted(1)
    _, transfer = transfer_of(cache)
    sequence = FakeSequence([1, *LONG, 1])
    transfer.look_ahead([sequence])
    happen(cache, store)
    assert cache.counts()["disk_hits"] == 0
    transfer.start(sequence)
    assert transfer.has_work
    assert cache.counts()["disk_hits"] == 1


def test_of_what_is_too_short_to_be_brought_the_part_in_ram_is_taken():
    cache, _ = restarted(1, min_tokens=302)
    assert not cache.find(tokens([1], LONG, range(100), [1]), b"", 0)
    remember(cache, 1, letter=b"a")
    (part,) = cache.find(tokens([1], LONG, range(100), [1]), b"", 0)
    assert (part.state.saved, part.stop) == (b"a" * BYTES, 201)
    assert not cache.find(tokens([1], LONG, range(100), [1]), b"", 201)
