"""The disk tier's files on a disk that is full, broken or slow, whatever is done to them in whatever order."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.driven_store import Driven, driven, id_of, order_of
from support.faulty_files import FaultyFiles

from llamafast.engine import disk_writer
from llamafast.engine.disk_entry import file_name, unfinished_name


@pytest.fixture
def files():
    return FaultyFiles()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(disk_writer, "PAUSE", -1.0)


def failing(one, files, number=1, **faults):
    """What becomes of a write while the disk fails; it works again afterwards."""
    for name, value in faults.items():
        setattr(files, name, value)
    event = one.write(order_of(number))
    files.heal()
    return event


WRITE_FAULTS = {
    "no room at once": ({"room": 0}, True),
    "no room for the state": ({"room": 4096 + 48 + 100}, True),
    "no room for the head": ({"room": 100}, True),
    "quota": ({"failing": {"write": errno.EDQUOT}}, True),
    "broken": ({"failing": {"write": errno.EIO}}, False),
    "broken when flushed": ({"failing": {"flush": errno.EIO}}, False),
    "read-only": ({"failing": {"create": errno.EROFS}}, False),
    "no rename": ({"failing": {"rename": errno.EIO}}, False),
    "no look at what is free": ({"failing": {"free_bytes": errno.EIO}}, False),
    "too many files": ({"failing": {"create": errno.EMFILE}}, False),
}


@pytest.mark.parametrize("fault", WRITE_FAULTS)
def test_a_write_that_fails_leaves_nothing(tmp_path, files, fault):
    faults, full = WRITE_FAULTS[fault]
    with driven(tmp_path, files=files) as one:
        one.listed()
        event = failing(one, files, **faults)
        assert (event.head, event.full) == (None, full)
        assert (one.names, one.store.used_bytes) == (set(), 0)
        assert one.store.counts["disk_failures"] == 1
        assert one.write(order_of(2)).head is not None
        assert one.store.counts["disk_written_bytes"] == order_of(2).file_bytes


def test_what_continues_what_could_not_be_written_is_not_written(tmp_path, files):
    with driven(tmp_path, files=files) as one:
        one.listed()
        base, other = order_of(1), order_of(9)
        heir = order_of(2, base=base)
        assert failing(one, files, 1, room=0).head is None
        assert one.write(heir).head is None
        assert one.write(order_of(3, base=heir)).head is None
        assert one.write(other).head is not None
        assert one.store.counts["disk_failures"] == 1


def test_after_a_write_that_failed_there_is_a_pause(tmp_path, files, monkeypatch):
    monkeypatch.setattr(disk_writer, "PAUSE", 1000.0)
    with driven(tmp_path, files=files) as one:
        one.listed()
        (head,) = one.write_all([order_of(0)]).values()
        assert not one.store.write_paused
        assert failing(one, files, 1, failing={"write": errno.EIO}).head is None
        assert one.store.write_paused
        assert one.write(order_of(2)).head is None
        assert one.store.counts["disk_slow"] == 1
        assert one.read(head) == order_of(0).state
        one.store._writer.paused_until = 0.0
        assert one.write(order_of(3)).head is not None


def test_where_the_disk_is_full_another_try_comes_before_the_pause(tmp_path, files, monkeypatch):
    monkeypatch.setattr(disk_writer, "PAUSE", 1000.0)
    with driven(tmp_path, files=files) as one:
        one.listed()
        files.room = 0
        assert one.write(order_of(1)).full
        assert not one.store.write_paused
        event = one.write(order_of(2)._replace(again=True))
        assert (event.head, event.full) == (None, False)
        assert one.store.write_paused


def test_what_waits_for_a_disk_that_hangs_grows_old(tmp_path, files):
    with driven(tmp_path, files=files) as one:
        one.listed()
        assert one.store.counts["disk_oldest_order"] == 0
        (head,) = one.write_all([order_of(0)]).values()
        for name, order in (("create", lambda: one.store.write(order_of(1))), ("open", lambda: one.store.read(head))):
            with files.gate(name) as gate:
                order()
                assert gate.reached.wait(30)
                age = one.store.counts["disk_oldest_order"]
                assert 0 < age < one.store.counts["disk_oldest_order"]
                gate.opened.set()
                one.event()
            one.carried_out()
        while one.store.counts["disk_oldest_order"]:
            pass


def test_what_cannot_be_removed_goes_on_to_count(tmp_path, files):
    with driven(tmp_path, files=files) as one:
        one.listed()
        one.write_all([order_of(0)])
        files.failing = {"rename": errno.EIO, "unlink": errno.EIO}
        assert one.write(order_of(1)).head is None
        one.delete(id_of(0))
        files.heal()
        assert one.names == {file_name(id_of(0)), unfinished_name(id_of(1))}
        assert one.store.used_bytes == order_of(0).file_bytes + order_of(1).file_bytes
    with driven(tmp_path) as one:
        assert one.entries().keys() == {id_of(0)}
        assert one.names == {file_name(id_of(0))}


def test_a_disk_that_takes_and_gives_a_little_at_a_time_is_slow_but_right(tmp_path, files):
    with driven(tmp_path, files=files) as one:
        one.listed()
        files.at_most = 777
        (head,) = one.write_all([order_of(1)]).values()
        assert one.read(head) == order_of(1).state
    files.at_most = None
    with driven(tmp_path, files=files) as one:
        assert one.entries().keys() == {id_of(1)}


READ_FAULTS = {
    "open": {"failing": {"open": errno.EIO}},
    "size": {"failing": {"size": errno.EIO}},
    "read": {"failing": {"read": errno.EIO}},
    "a wrong bit": {"flips": True},
    "gone": {"vanishing": True},
}


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_read_that_fails_brings_nothing(tmp_path, files, fault):
    with driven(tmp_path, files=files) as one:
        one.listed()
        first, second = one.write_all([order_of(1), order_of(2)]).values()
        for name, value in READ_FAULTS[fault].items():
            setattr(files, name, value)
        assert one.read(first) is None
        files.heal()
        assert one.read(second) == order_of(2).state
        assert one.store.counts["disk_corrupt"] == (fault != "gone")


def test_the_folder_may_vanish_meanwhile(tmp_path, files):
    with driven(tmp_path / "disk", files=files) as one:
        one.listed()
        (head,) = one.write_all([order_of(1)]).values()
        (tmp_path / "disk").rename(tmp_path / "away")
        assert one.read(head) is None
        event = one.write(order_of(2))
        assert event.head is None or one.read(event.head) == order_of(2).state


class Store(RuleBasedStateMachine):
    """Entries are written, read, deleted and listed again while the disk fails now and then.

    What is brought is what was written, and what no fault can have touched is there.
    """

    max_bytes = 9 * order_of(0).file_bytes

    @initialize()
    def begin(self):
        self.place = tempfile.TemporaryDirectory()
        self.files = FaultyFiles()
        self.next = 0
        self.heads = {}  # of all that was ever written
        self.orders = {}
        self.sure = set()  # ids of what must be there
        self.faulty = self.inexact = False
        self.one = Driven(Path(self.place.name), files=self.files, max_bytes=self.max_bytes)
        self.one.listed()

    @rule(n_bytes=st.integers(1, 8000), place=st.integers(0, 5))
    def write(self, n_bytes, place):
        if not self.one.store.writable:
            return  # it could not even begin to write
        there = sorted(self.sure)
        base = self.orders[there[place]] if place < len(there) else None
        order = order_of(self.next, n_bytes, base=base)
        self.next += 1
        room = self.one.store.used_bytes + order.file_bytes <= self.max_bytes
        event = self.one.write(order)
        if event.head is None:
            assert self.faulty or not room
            return
        assert room
        self.heads[order.id], self.orders[order.id] = event.head, order
        self.sure.add(order.id)

    @rule(place=st.integers(0, 20))
    def read(self, place):
        if place < len(self.heads):
            id = list(self.heads)[place]
            state = self.one.read(self.heads[id])
            assert state in (None, self.orders[id].state)
            if id in self.sure and not self.faulty:
                assert state is not None
            if self.files.vanishing:
                self.inexact = True
                self.sure.discard(id)

    @rule(place=st.integers(0, 20))
    def delete(self, place):
        if place < len(self.heads):
            id = list(self.heads)[place]
            self.one.delete(id)
            if not self.one.store.writable:
                return
            self.sure.discard(id)
            if not self.faulty:
                assert file_name(id) not in self.one.names

    @rule(
        name=st.sampled_from(["create", "open", "size", "read", "write", "flush", "rename", "unlink", "free_bytes"]),
        error=st.sampled_from([errno.EIO, errno.ENOSPC, errno.EMFILE]),
    )
    def fail(self, name, error):
        self.files.failing[name] = error
        self.faulty = True
        self.inexact = self.inexact or name == "unlink"  # whether anything was there to be deleted is not known then

    @rule(room=st.integers(0, 10_000), what=st.sampled_from(["room", "at_most", "flips", "vanishing"]))
    def fail_otherwise(self, room, what):
        setattr(self.files, what, max(room, 1500) if what == "at_most" else room if what == "room" else True)
        self.faulty = True

    @rule()
    def heal(self):
        self.files.heal()
        self.faulty = False

    @rule(healed=st.sampled_from([True, True, False]))
    def restart(self, healed):
        self.one.close()
        if healed or errno.EMFILE in self.files.failing.values():  # with which nothing is listed as long as it lasts
            self.heal()
        self.one = Driven(Path(self.place.name), files=self.files, max_bytes=self.max_bytes)
        there = self.one.entries()
        self.inexact = self.files.vanishing or "unlink" in self.files.failing
        for id, (head, tokens, _) in there.items():
            assert (head, tokens) == (self.heads[id], self.orders[id].tokens)
        if self.faulty:
            self.sure.clear()
        else:
            assert self.sure <= there.keys()
            self.sure = set(there)
            assert self.one.names == {file_name(id) for id in there}

    @invariant()
    def no_more_is_there_than_is_told(self):
        if not hasattr(self, "one") or not self.one.folder.locked:
            return  # who only reads need not know
        sizes = [path.stat().st_size for path in self.one.namespace.iterdir() if path.name in self.one.names]
        taken = sum(-(-size // 4096) * 4096 for size in sizes)
        assert taken <= self.one.store.used_bytes <= self.max_bytes
        if not self.inexact and not any(name.endswith(".tmp") for name in self.one.names):
            assert taken == self.one.store.used_bytes

    def teardown(self):
        if hasattr(self, "one"):
            self.heal()
            self.restart(healed=True)
            used = sum(self.orders[id].file_bytes for id in self.sure)
            assert self.one.store.used_bytes == used
            self.one.close()
            self.place.cleanup()


def test_what_is_brought_is_what_was_written():
    run_state_machine_as_test(Store, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
