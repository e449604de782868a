"""What a TieredCache writes to its disk, and what has to leave for it, over a store that does as a test says."""

from __future__ import annotations

import pytest
from support.fake_store import FakeStore

from engine.test_cache import LONG, keep, tokens
from llamafast._core.context import UNLIMITED
from llamafast.engine import disk_admission
from llamafast.engine.disk_tier import TieredCache
from llamafast.engine.prefix_key import PrefixKey

PRIVATE = PrefixKey(private=1).encoded()
BYTES = 8000  # of each state here
FILE = 4 * 4096  # and of its file

pytestmark = pytest.mark.usefixtures("little_ram")


def tiered(
    budget=10**6, max_bytes=10**6, disk=None, min_tokens=16, *, row_seconds=float, in_parts=True,
    n_cuttable=UNLIMITED, **options,
):  # fmt: skip
    """A cache and its store, whose disk is listed."""
    store = FakeStore({} if disk is None else disk, max_bytes, **options)
    cache = TieredCache(budget, store, min_tokens, row_seconds=row_seconds, in_parts=in_parts, n_cuttable=n_cuttable)
    happen(cache, store)
    return cache, store


def happen(cache, store, rounds=20):
    """Everything that is under way comes to its end."""
    for _ in range(rounds):
        store.run()
        if not cache.has_news:
            return
        cache.settle(1.0)
    raise AssertionError("it never ends")


def remember(cache, first, *lists, salt=b"", letter=b"x"):
    """Keep a prefix that begins with a token of its own."""
    return keep(cache, [first], LONG, *lists, salt=salt, saved=letter * BYTES)


def used(cache, first, *lists, salt=b""):
    """Find it and count it as taken, where it is there: its parts."""
    found = cache.find(tokens([first], LONG, *lists, [1]), salt, 0)
    if found:
        cache.use(found)
    return found


def kept_first(store):
    """First tokens of the entries that begin at 0."""
    return sorted(kept.tokens[0] for kept in store.disk.values() if not kept.head.base)


def test_what_nobody_asks_for_again_is_not_written():
    cache, store = tiered(60_000)
    for first in range(50):
        remember(cache, first)
        happen(cache, store)
    assert cache.counts()["evictions_budget"] > 40
    assert not store.written


def test_what_is_used_again_is_written_with_what_it_continues():
    cache, store = tiered()
    remember(cache, 1)
    remember(cache, 1, range(100), letter=b"y")
    remember(cache, 2)
    assert not store.written
    used(cache, 1, range(100))
    assert len(store.orders) == 2
    happen(cache, store)
    base, heir = sorted(store.disk.values(), key=lambda kept: kept.head.depth)
    assert (base.head.start, base.head.stop, base.state) == (0, 201, b"x" * BYTES)
    assert (heir.head.start, heir.head.stop, heir.state) == (201, 301, b"y" * BYTES)
    assert (heir.head.base, list(heir.tokens)) == (base.head.id, list(range(100)))
    used(cache, 1, range(100))
    assert len(store.written) == 2


def test_what_is_computed_again_after_it_was_lost_is_written_at_once():
    cache, store = tiered(30_000)
    for first in (0, 1, 2, 3, 4, 5, 0):
        assert not store.written
        remember(cache, first)
    assert cache.counts()["evictions_budget"] > 3
    happen(cache, store)
    assert kept_first(store) == [0]


def test_what_was_lost_of_one_salt_is_none_of_anothers():
    cache, store = tiered(30_000)
    for first in range(6):
        remember(cache, first, salt=b"a")
    remember(cache, 0, salt=b"b")
    remember(cache, 0)
    assert not store.written
    remember(cache, 0, salt=b"a")
    happen(cache, store)
    assert [kept.head.root for kept in store.disk.values()] == [store.folder.root(b"a").hex()]


def test_what_nobody_computes_meanwhile_is_written():
    cache, store = tiered()
    assert not cache.wants_idle
    for first in range(3):
        remember(cache, first)
    assert cache.wants_idle
    cache.settle_idle()
    assert not cache.wants_idle
    happen(cache, store)
    assert kept_first(store) == [0, 1, 2]
    assert not cache.wants_idle


def test_while_nobody_computes_a_little_is_written_at_a_time(monkeypatch):
    monkeypatch.setattr(disk_admission, "IDLE_BYTES", 2 * BYTES)
    cache, store = tiered()
    for first in range(5):
        remember(cache, first)
    for n in (2, 4, 5):
        assert cache.wants_idle
        cache.settle_idle()
        happen(cache, store)
        assert len(store.disk) == n
    assert not cache.wants_idle


def test_what_could_not_be_written_is_tried_once_while_nobody_computes():
    cache, store = tiered()
    remember(cache, 1)
    cache.settle_idle()
    store.carry_out(done=False)
    cache.settle(1.0)
    assert not cache.wants_idle
    store.write_paused = True
    remember(cache, 2)
    cache.settle_idle()
    used(cache, 2)
    assert len(store.written) == 1
    assert store.n_dropped == 1
    store.write_paused = False
    assert cache.wants_idle
    cache.settle_idle()
    assert len(store.written) == 2


def test_the_rest_is_written_at_the_end():
    cache, store = tiered()
    for first in range(3):
        remember(cache, first)
    remember(cache, 7, salt=PRIVATE)
    cache.close(1.0)
    assert store.closed
    assert kept_first(store) == [0, 1, 2]


def test_what_is_private_is_never_written():
    cache, store = tiered(30_000)
    n_used = 0
    for first in (0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5):
        remember(cache, first, salt=PRIVATE)
        n_used += len(used(cache, first, salt=PRIVATE))
    assert n_used > 6
    assert cache.counts()["evictions_budget"] > 3
    cache.settle_idle()
    cache.close(1.0)
    assert not store.written


def test_short_prefixes_are_not_written():
    cache, store = tiered(min_tokens=202)
    remember(cache, 1)
    remember(cache, 2, [1])
    for first in (1, 2):
        used(cache, first)
    cache.settle_idle()
    cache.close(1.0)
    assert [kept.head.stop for kept in store.disk.values()] == [202]


def test_nothing_is_written_before_it_is_known_what_is_there():
    store = FakeStore({}, 10**6)
    cache = TieredCache(10**6, store, 16)
    remember(cache, 1)
    used(cache, 1)
    assert not cache.wants_idle
    cache.close(1.0)
    assert not store.written


def restarted(*firsts, **options):
    """A cache of whose prefixes the disk has all and RAM none."""
    cache, store = tiered()
    for first in firsts:
        remember(cache, first)
        remember(cache, first, range(100))
    cache.close(1.0)
    return tiered(disk=store.disk, **options)


def test_a_prefix_whose_write_failed_stays_in_ram():
    cache, store = tiered(30_000)
    remember(cache, 1, letter=b"a")
    used(cache, 1)
    for first in range(2, 8):
        remember(cache, first)
    (found,) = cache.find(tokens([1], LONG, [1]), b"", 0)
    assert found.state.saved is None
    assert cache.saved(found.state) == b"a" * BYTES
    store.carry_out(done=False)
    cache.settle(1.0)
    assert found.state.saved == b"a" * BYTES
    assert cache.used_bytes <= cache.budget
    assert cache.counts()["disk_save_failures"] == 1
    assert not store.disk


def test_where_the_disk_is_full_a_tenth_goes_and_the_write_is_tried_again():
    cache, store = tiered()
    for first in range(10):
        remember(cache, first)
        used(cache, first)
    happen(cache, store)
    remember(cache, 10)
    remember(cache, 10, range(100))
    used(cache, 10, range(100))
    store.carry_out(done=False, full=True)
    cache.settle(1.0)
    assert cache.counts()["disk_evictions"] == 1
    happen(cache, store)
    assert len([kept for kept in store.disk.values() if 10 in kept.tokens or kept.head.base]) == 2
    assert [order.again for order in store.all_orders] == [False] * 12 + [True] * 2
    remember(cache, 11)
    used(cache, 11)
    store.carry_out(done=False, full=True)
    cache.settle(1.0)
    assert [kind for kind, _ in store.orders] == ["delete", "delete", "delete", "write"]
    for _ in range(3):
        store.carry_out()
    store.carry_out(done=False)
    happen(cache, store)
    assert 11 not in kept_first(store)
    assert cache.counts()["disk_evictions"] == 3


def test_what_would_come_back_later_than_it_is_computed_is_not_written():
    large = b"x" * 2 * 2**20
    cache, store = tiered(10**8, 10**8, row_seconds=lambda: 0.001)
    traffic = cache._traffic

    def is_written(first):
        keep(cache, [first], LONG, saved=large)
        used(cache, first)
        happen(cache, store)
        return first in kept_first(store)

    # 201 tokens, 0.2 s to compute
    assert is_written(1)
    traffic.learn(BYTES, 10.0)
    assert is_written(2)
    for _ in range(50):
        traffic.learn(len(large), 0.105)
    assert not is_written(3)
    assert cache.counts()["disk_dropped_worth"] == 1
    cache.close(1.0)
    assert 3 not in kept_first(store)
    remember(cache, 4)
    for _ in range(50):
        traffic.learn(len(large), 0.095)
    assert is_written(5)


def whole(uncuttable=True, **options):
    return tiered(in_parts=False, n_cuttable=0 if uncuttable else UNLIMITED, **options)


def turns(cache, store, first, n, *, uncuttable=True):
    """A conversation of so many turns, each of which is saved at two places and begins where the last one ended."""
    ends = []
    for turn in range(n):
        if turn:
            parts = used(cache, first, range(100 * turn))
            assert parts[-1].stop == ends[-1] or not uncuttable
        for end in (100 * turn + 60, 100 * turn + 100):
            remember(cache, first, range(end))
            ends.append(201 + end)
        happen(cache, store)
        cache.settle_idle()
        happen(cache, store)
    return ends


@pytest.mark.parametrize("uncuttable", [True, False])
def test_of_whole_states_the_middle_ones_leave_first(uncuttable):
    cache, store = whole(uncuttable)
    remember(cache, 99)
    used(cache, 99)
    turns(cache, store, 1, 5, uncuttable=uncuttable)
    of_it = sorted(kept.head.stop for kept in store.disk.values() if kept.tokens[0] == 1)
    assert len(of_it) > 4
    n_middle = len(of_it) - (4 if uncuttable else 2)
    cache._entries.shrink(cache._entries.n_bytes - n_middle * FILE, 10**9)
    happen(cache, store)
    left = sorted(kept.head.stop for kept in store.disk.values() if kept.tokens[0] == 1)
    assert left == ([of_it[0], *of_it[-3:]] if uncuttable else [of_it[0], of_it[-1]])
    assert 99 in kept_first(store)


def test_what_another_conversation_uses_is_worth_as_much_as_before():
    cache, store = whole()
    turns(cache, store, 1, 4)
    parts = used(cache, 1, range(160), [7])
    assert parts[-1].stop == 361
    cache._entries.shrink(5 * FILE, 10**9)
    happen(cache, store)
    assert 361 in {kept.head.stop for kept in store.disk.values()}


def test_a_disk_that_takes_nothing_is_not_asked_for_ever():
    """What falls out of RAM, comes back as it cannot be written, and falls out again."""
    cache, store = tiered(60_000)
    for first in range(20):
        remember(cache, first)
        used(cache, first)
        for _ in range(5):
            while store.carry_out(done=False):
                pass
            cache.settle(1.0)
    assert not store.orders
    assert not cache.has_news


def test_what_is_written_again_before_its_heir_has_failed_keeps_count():
    cache, store = tiered()
    remember(cache, 1)
    remember(cache, 1, range(100))
    base, heir = (part.state for part in used(cache, 1, range(100)))
    store.carry_out(done=False)
    store.carry_out()
    cache.settle(0.0)
    assert base.entry is None
    found = cache.find(tokens([1], LONG, [1]), b"", 0)
    cache.use(found)
    happen(cache, store)
    assert heir.entry is None
    assert base.entry.n_heirs == 0
    used(cache, 1, range(100))
    happen(cache, store)
    assert base.entry.n_heirs == 1
    assert len(store.disk) == 2


def test_what_is_worth_least_leaves_the_disk_first():
    cache, store = tiered(max_bytes=5 * FILE)
    for first in range(5):
        remember(cache, first)
        for _ in range(5 if first in (1, 3) else 1):
            used(cache, first)
    happen(cache, store)
    assert kept_first(store) == [0, 1, 2, 3, 4]
    for first in (5, 6, 7):
        remember(cache, first)
        used(cache, first)
        happen(cache, store)
    assert len(store.disk) == 5
    assert {1, 3} < set(kept_first(store))
    assert store.used_bytes <= store.max_bytes
    assert cache.counts()["disk_evictions"] == 3


def test_what_is_larger_than_the_disk_may_be_is_not_written():
    cache, store = tiered(max_bytes=FILE - 1)
    remember(cache, 1)
    used(cache, 1)
    assert not store.written
    assert cache.counts()["disk_dropped_budget"] == 1


def test_other_namespaces_count():
    cache, store = tiered(max_bytes=3 * FILE, elsewhere=FILE)
    for first in range(4):
        remember(cache, first)
        used(cache, first)
        happen(cache, store)
    assert (len(store.disk), store.used_bytes) == (2, 3 * FILE)
