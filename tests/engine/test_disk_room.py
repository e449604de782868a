"""The disk tier over real folders where a call fails once: its room, who writes, and how it ends."""

from __future__ import annotations

import errno
import os
import shutil
import threading

import pytest
from support.driven_store import FINGERPRINT, SECONDS, Driven, driven, id_of, order_of
from support.faulty_files import FaultyFiles

from engine.test_disk_store import chain, when_waited_for, written
from engine.test_disk_tier import FILE, remember, used
from llamafast.engine import disk_reader, disk_room, disk_writer
from llamafast.engine.disk import DiskStore
from llamafast.engine.disk_entry import file_name
from llamafast.engine.disk_events import Written
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.disk_tier import TieredCache
from llamafast.engine.files import Files, in_blocks

SIZE = order_of(0).file_bytes

pytestmark = pytest.mark.usefixtures("little_ram")


@pytest.fixture
def looks_soon(monkeypatch):
    monkeypatch.setattr(disk_reader, "LOOK_SECONDS", 0.01)


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(disk_writer, "PAUSE", -1.0)


class FailingOnce(FaultyFiles):
    """``fail_once`` has the next call of a method fail, for a path that ends so."""

    next_fault: tuple[str, str, int] | None = None

    def fail_once(self, name, ending, error=errno.EMFILE):
        self.next_fault = name, ending, error

    def _meet(self, name, path=None):
        if self.next_fault is not None and path is not None:
            fails, ending, error = self.next_fault
            if name == fails and path.name.endswith(ending):
                self.next_fault = None
                raise OSError(error, os.strerror(error))
        super()._meet(name, path)


@pytest.fixture
def files():
    return FailingOnce()


class Tier:
    """A TieredCache whose disk is listed; what it orders is carried out when ``remember`` returns."""

    def __init__(self, path, max_bytes, files=None):
        self._news = threading.Event()
        self.store = DiskStore(DiskFolder(path, FINGERPRINT, files), max_bytes, self._news.set)
        self.cache = TieredCache(10**6, self.store, 16)
        self.store.start()
        self.settle(lambda: self.cache._admission.listed)

    def settle(self, done):
        """Take note of what happens until it is done."""
        while not done():
            assert self._news.wait(SECONDS), "nothing has happened"
            self._news.clear()
            self.cache.settle(1.0)

    def carried_out(self):
        """All orders are, and those that are given because of what became of them."""
        while True:
            done = threading.Event()
            self.store._writer._order(done.set)
            assert done.wait(SECONDS)
            if not self.cache.has_news:
                return
            self.cache.settle(1.0)

    def remember(self, firsts, n_used=1):
        """Keep some prefixes, each used so many times, one after the other."""
        for first in firsts:
            remember(self.cache, first)
            for _ in range(n_used):
                used(self.cache, first)
            self.carried_out()

    def close(self):
        self.cache.close(1.0)


def kept(path):
    """What the entries of all namespaces take."""
    return sum(in_blocks(file.stat().st_size) for file in path.rglob("*.safetensors"))


def comes_to_write(one):
    """Whether it does after a few looks."""
    while one.store.has_news:
        one.event()
    for _ in range(20):
        if one.store.writable:
            return True
        one.event()
    return False


def is_written(one, order):
    """Whatever it tells meanwhile."""
    one.store.write(order)
    while not isinstance(event := one.event(), Written):
        pass
    return event.head is not None


def remembered(path, firsts, max_bytes=10**8):
    """A process has kept some prefixes, and has ended."""
    tier = Tier(path, max_bytes)
    tier.remember(firsts)
    tier.close()


# --- how much there is -----------------------------------------------------------------------------------------------


def test_a_disk_that_others_have_filled_costs_a_tenth_and_a_pause(tmp_path, files, monkeypatch):
    tier = Tier(tmp_path, 10**8, files)
    tier.remember(range(30))
    assert kept(tmp_path) == 30 * FILE
    for first in range(100, 110):
        remember(tier.cache, first)
    monkeypatch.setattr(files, "free_bytes", lambda path: 0)
    tier.cache.settle_idle()
    tier.carried_out()
    assert tier.store.write_paused
    assert tier.cache.counts()["disk_evictions"] == 4
    assert kept(tmp_path) == 26 * FILE
    tier.close()


def test_a_file_that_could_not_be_looked_at_once_stops_no_writes(tmp_path, files, looks_soon):
    remembered(tmp_path, range(6), 6 * FILE)
    files.fail_once("open", ".safetensors")
    tier = Tier(tmp_path, 6 * FILE, files)
    assert len(tier.cache._entries.by_id) == 6
    tier.remember(range(100, 103), 20)
    assert tier.store.counts["disk_written_bytes"] == 3 * FILE
    assert tier.cache.counts()["disk_save_failures"] == 0
    assert kept(tmp_path) == tier.store.used_bytes == 6 * FILE
    tier.close()


def test_a_file_that_does_not_go_takes_the_room_of_one(tmp_path, files):
    tier = Tier(tmp_path, 6 * FILE, files)
    tier.remember(range(6))
    files.fail_once("unlink", ".safetensors", errno.EBUSY)
    tier.remember(range(100, 105), 20)
    assert tier.cache.counts()["disk_save_failures"] == 1
    assert tier.store.counts["disk_written_bytes"] == 10 * FILE
    assert tier.store.elsewhere == FILE
    assert kept(tmp_path) == tier.store.used_bytes == 6 * FILE
    tier.close()


def test_two_that_write_at_once_take_no_more_than_one_may(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_room, "WEIGH_SECONDS", -1.0)
    options = {"max_bytes": 5 * SIZE}
    with driven(tmp_path, about="a", **options) as one, driven(tmp_path, about="b", **options) as other:
        one.listed()
        other.listed()
        n_written = 0
        for number in range(4):
            n_written += one.write(order_of(number)).head is not None
            n_written += other.write(order_of(10 + number)).head is not None
        assert n_written == 4
        assert kept(tmp_path) == 4 * SIZE
        assert one.store.used_bytes <= 5 * SIZE


def test_what_is_set_aside_twice_counts_once(tmp_path):
    written(tmp_path, order_of(90), about="other")
    with driven(tmp_path, max_bytes=6 * SIZE) as one:
        one.listed()
        rest = one.store.used_bytes - kept(tmp_path)
        for number in (0, 10, 20):
            one.write_all([order_of(number), order_of(number + 1)])
            one.store.set_aside()
            one.carried_out()
            assert one.store.used_bytes == kept(tmp_path) + rest == 3 * SIZE + rest
        one.write_all(order_of(number) for number in range(50, 53))
        assert one.store.counts["disk_foreign"] == 1
        assert file_name(id_of(90)) in {file.name for file in tmp_path.rglob("*.safetensors")}
        assert one.store.used_bytes == kept(tmp_path) + rest == 4 * SIZE + rest


def test_where_nothing_new_can_be_begun_what_was_set_aside_still_counts(tmp_path, files):
    with driven(tmp_path, max_bytes=4 * SIZE, files=files) as one:
        one.listed()
        heads = one.write_all(map(order_of, range(4)))
        files.failing["make_folder"] = errno.ENOSPC
        one.store.set_aside()
        for id in heads:
            one.store.delete(id)
        one.carried_out()
        files.heal()
        assert one.store.used_bytes == kept(tmp_path) == 4 * SIZE
        one.write_all(map(order_of, range(10, 14)))
        assert one.folder.locked
        assert one.names == {file_name(id_of(number)) for number in range(10, 14)}
        assert one.store.used_bytes == kept(tmp_path) == 4 * SIZE


def test_another_namespace_that_could_not_be_looked_at_once_counts(tmp_path, files, looks_soon):
    written(tmp_path, *map(order_of, range(4)), about="other")
    (other,) = tmp_path.iterdir()
    files.fail_once("scan", other.name)
    with driven(tmp_path, max_bytes=6 * SIZE, files=files) as one:
        one.listed()
        assert files.next_fault is None
        assert one.store.used_bytes >= 4 * SIZE
        for number in range(10, 16):
            assert one.write(order_of(number)).head is not None
            assert kept(tmp_path) <= 6 * SIZE


def test_a_file_system_that_tells_no_blocks_is_measured_by_the_sizes(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10_000)
    (found,) = Files().scan(tmp_path)
    assert found.n_bytes == 3 * 4096


def test_entries_that_take_nothing_are_found(tmp_path, monkeypatch):
    remembered(tmp_path, range(3))
    scan = Files.scan
    monkeypatch.setattr(Files, "scan", lambda self, path: (one._replace(n_bytes=0) for one in scan(self, path)))
    tier = Tier(tmp_path, 10 * FILE)
    assert len(tier.cache._entries.by_id) == 3
    tier.close()


# --- who writes ------------------------------------------------------------------------------------------------------


def test_an_entry_that_could_not_be_looked_at_once_costs_none_of_its_heirs(tmp_path, files, looks_soon):
    orders = [*chain(4), *chain(2, 10)]
    written(tmp_path, *orders)
    files.fail_once("open", file_name(orders[0].id))
    with driven(tmp_path, files=files) as one:
        assert one.entries().keys() == {order.id for order in orders}
        assert files.next_fault is None
        assert one.names == {file_name(order.id) for order in orders}


def test_a_lock_that_is_lost_with_the_folder_is_taken_again(tmp_path, files, no_pause):
    with driven(tmp_path, files=files) as one:
        one.listed()
        (head,) = one.write_all([order_of(1)]).values()
        assert one.store.writable
        shutil.rmtree(one.namespace)
        files.fail_once("create", ".tmp")
        assert one.write(order_of(2)).head is None
        assert one.store.writable
        one.delete(head.id)
        one.write_all([order_of(3)])
        assert one.folder.locked
        other = DiskFolder(tmp_path, FINGERPRINT)
        assert not other.locked
        assert one.names == {file_name(id_of(3))}
        one.delete(id_of(3))
        assert one.names == set()
        assert one.store.used_bytes == 0


def test_who_reads_writes_when_the_writer_has_gone(tmp_path, looks_soon):
    old = Driven(tmp_path)
    old.listed()
    with driven(tmp_path) as new:
        assert not new.store.writable
        heads = old.write_all(chain(2))
        root = old.folder.root(b"salt")
        old.close()
        assert comes_to_write(new)
        assert is_written(new, order_of(5))
        assert new.folder.root(b"salt") == root
        new.delete(id_of(1))
        assert new.names == {file_name(id) for id in heads.keys() - {id_of(1)} | {id_of(5)}}


def test_who_starts_while_somebody_looks_at_the_lock_writes_later(tmp_path, looks_soon):
    written(tmp_path, order_of(1))
    (namespace,) = tmp_path.iterdir()
    files = Files()
    held = files.lock(namespace / "lock")
    with driven(tmp_path) as one:
        assert not one.store.writable
        files.close(held)
        assert comes_to_write(one)
        assert is_written(one, order_of(2))


def test_where_priorities_may_not_be_changed_it_is_read_and_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "setpriority", refuse)
    with driven(tmp_path) as one:
        assert one.entries() == {}
        (head,) = one.write_all([order_of(1)]).values()
        assert one.read(head) == order_of(1).state


# --- the end ---------------------------------------------------------------------------------------------------------


def test_the_end_does_not_wait_for_a_write_that_hangs(tmp_path, files, monkeypatch):
    monkeypatch.setattr(disk_writer, "HANGS", 0.01)
    one = Driven(tmp_path, files=files)
    one.listed()
    with files.gate("flush") as gate:
        one.store.write(order_of(1))
        assert gate.reached.wait(SECONDS)
        closing = threading.Thread(target=one.close, args=(0.0,), daemon=True)
        closing.start()
        closing.join(SECONDS / 2)
        assert not closing.is_alive()
        assert one.store._writer._thread.is_alive()
    one.store._writer._thread.join(SECONDS)


def test_what_is_to_go_goes_though_time_is_up_at_the_end(tmp_path, files):
    one = Driven(tmp_path, files=files)
    one.listed()
    one.write_all([order_of(0)])
    with files.gate("create") as gate:
        one.store.write(order_of(1))
        one.store.write(order_of(2))
        one.store.delete(id_of(0))
        assert gate.reached.wait(SECONDS)
        when_waited_for(one.store._writer._thread, gate.opened.set)
        one.close(-1.0)
    assert one.names == {file_name(id_of(1))}


def test_a_look_that_is_under_way_at_the_end_takes_no_lock(tmp_path, looks_soon):
    writer, slow = Driven(tmp_path), FaultyFiles()
    writer.listed()
    reader = Driven(tmp_path, files=slow)
    with slow.gate("make_folder") as gate:
        assert gate.reached.wait(SECONDS)
        reader.close(0.0)
        writer.close()
        gate.opened.set()
    reader.store._reader._thread.join(SECONDS)
    assert not reader.folder.locked
    again = DiskFolder(tmp_path, FINGERPRINT)
    assert again.locked
    again.close()


def test_a_file_that_can_never_be_looked_at_stops_no_writes(tmp_path, looks_soon):
    written(tmp_path, order_of(1), order_of(2))

    class Stale(FaultyFiles):
        def open(self, path, **options):
            if path.name == file_name(id_of(1)):
                raise OSError(errno.ESTALE, "stale")
            return super().open(path, **options)

    with driven(tmp_path, files=Stale()) as one:
        assert one.entries().keys() == {id_of(2)}
        assert one.write(order_of(3)).head is not None
        assert one.store.used_bytes == 3 * SIZE


def test_who_was_the_writer_goes_on_to_be_it(tmp_path):
    with driven(tmp_path) as one:
        one.listed()
        one.folder._unlock()
        assert one.store.writable
        assert one.write(order_of(1)).head is not None
        assert one.folder.locked
