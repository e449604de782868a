"""A DiskStore over a real folder and over one that fails: what it brings is what was written, or nothing."""

from __future__ import annotations

import errno
import os

import pytest
from support.driven_store import Driven, driven, id_of, order_of
from support.faulty_files import FaultyFiles

from llamafast.engine import disk_reader, disk_writer
from llamafast.engine.disk_entry import HEAD_BYTES, encode_head, file_name, unfinished_name
from llamafast.engine.disk_events import Brought


@pytest.fixture
def files():
    return FaultyFiles()


def written(path, *orders, **options):
    """Heads by id of what a process has written, which has ended."""
    with driven(path, **options) as one:
        one.listed()
        return one.write_all(orders)


def when_waited_for(thread, act):
    """Do something once somebody waits for the end of a thread."""
    join = thread.join
    thread.join = lambda seconds: (act(), join(seconds))


def chain(n, first=0):
    orders = [order_of(first)]
    for number in range(first + 1, first + n):
        orders.append(order_of(number, base=orders[-1]))
    return orders


def test_what_is_written_is_brought_again_also_after_a_restart(tmp_path):
    orders = [*chain(3), order_of(10, 1, n_tokens=1), order_of(11, 3 * 2**20, n_tokens=9000, root="ab" * 32)]
    with driven(tmp_path) as one:
        assert one.entries() == {}
        heads = one.write_all(orders)
        assert [one.read(heads[order.id]) for order in orders] == [order.state for order in orders]
        assert one.names == {file_name(order.id) for order in orders}
    with driven(tmp_path) as one:
        there = one.entries()
        assert there == {order.id: (heads[order.id], order.tokens, order.file_bytes) for order in orders}
        assert one.store.used_bytes == sum(order.file_bytes for order in orders)
        assert [one.read(heads[order.id]) for order in orders] == [order.state for order in orders]
        assert one.store.counts["disk_read_bytes"] == sum(len(order.state) for order in orders)


def test_files_are_their_owners_alone(tmp_path):
    written(tmp_path / "disk", order_of(1))
    for path in [tmp_path / "disk", *(tmp_path / "disk").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_comes_first_in_a_list_is_what_others_continue(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_reader, "LISTED_AT_ONCE", 4)
    written(tmp_path, *(order for first in (0, 100, 200) for order in chain(5, first)))
    with driven(tmp_path) as one:
        told = one.listed()
    assert [event.whole for event in told] == [False] * 4 + [True]
    heads = [entry[0] for event in told for entry in event.entries]
    assert len(heads) == 15
    assert [head.depth for head in heads] == sorted(head.depth for head in heads)


def test_what_was_used_long_ago_is_listed_before_what_was_used_since(tmp_path):
    orders = [order_of(k) for k in range(1, 5)]
    heads = written(tmp_path, *orders)
    for age, order in enumerate([orders[2], orders[0], orders[3], orders[1]]):
        (file,) = tmp_path.glob(f"*/{file_name(order.id)}")
        os.utime(file, (1000 - age, 1000 - age))
    with driven(tmp_path) as one:
        told = [entry[0] for event in one.listed() for entry in event.entries]
    assert told == [heads[orders[k].id] for k in (1, 3, 0, 2)]


def test_what_is_deleted_is_gone(tmp_path):
    with driven(tmp_path) as one:
        one.listed()
        heads = one.write_all(chain(2))
        one.delete(id_of(1))
        one.delete(id_of(7))
        assert one.names == {file_name(id_of(0))}
        assert one.store.used_bytes == order_of(0).file_bytes
        assert one.read(heads[id_of(1)]) is None
        assert one.store.counts["disk_corrupt"] == 0


def test_what_was_of_use_has_a_later_time(tmp_path):
    with driven(tmp_path) as one:
        one.listed()
        one.write_all([order_of(1)])
        path = one.namespace / file_name(id_of(1))
        os.utime(path, (1, 1))
        one.store.touch(id_of(1))
        one.store.touch(id_of(2))
        one.carried_out()
        assert path.stat().st_mtime > 10**9


@pytest.mark.parametrize("end", [0, 100, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 20, 9143])
def test_a_file_that_was_cut_is_deleted_at_start(tmp_path, end):
    written(tmp_path, order_of(1), order_of(2))
    path = next(tmp_path.glob(f"*/{file_name(id_of(1))}"))
    os.truncate(path, end)
    with driven(tmp_path) as one:
        assert one.entries().keys() == {id_of(2)}
        assert one.names == {file_name(id_of(2))}
        assert one.store.counts["disk_corrupt"] == 1
        assert one.store.used_bytes == order_of(2).file_bytes


def test_a_head_with_a_wrong_bit_is_deleted_at_start(tmp_path):
    order = order_of(0, 100)
    head = written(tmp_path, order)[order.id]
    (path,) = tmp_path.glob(f"*/{file_name(order.id)}")
    data = path.read_bytes()
    wrong = range(3, head.at, 37)
    for number, at in enumerate(wrong, 1):
        torn = bytearray(data)
        torn[at] ^= 0x10
        path.with_name(file_name(id_of(number))).write_bytes(torn)
    with driven(tmp_path) as one:
        assert one.entries().keys() == {order.id}
        assert one.names == {file_name(order.id)}
        assert one.store.counts["disk_corrupt"] == len(wrong)


CRAFTED = {
    "depth": b'{"__metadata__":{"base":"%b","root":"","start":"0","stop":"12","depth":"%b","state_xxh3_128":"%b"}}'
    % (b"1" * 32, b"9" * 3750, b"0" * 32),
    "deep": b'{"x":' + b"[" * 4000,
    "zeros": b"\0" * 4000,
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_head_of_somebody_elses_making_stops_nothing(tmp_path, what):
    written(tmp_path, order_of(1))
    (path,) = tmp_path.glob(f"*/{file_name(id_of(1))}")
    lie = (b"\xf8\x0f" + bytes(6) + CRAFTED[what]).ljust(HEAD_BYTES)
    path.with_name(file_name(id_of(2))).write_bytes(lie + bytes(5000))
    with driven(tmp_path) as one:
        assert one.entries().keys() == {id_of(1)}


@pytest.mark.parametrize("how", ["cut", "longer", "zeros", "gone", "a link", "a folder", "a pipe"])
def test_what_is_torn_after_it_was_listed_is_not_brought(tmp_path, how):
    with driven(tmp_path) as one:
        one.listed()
        (head,) = one.write_all([order_of(1)]).values()
        path = one.namespace / file_name(head.id)
        data = path.read_bytes()
        path.unlink()
        if how == "cut":
            path.write_bytes(data[:-1])
        elif how == "longer":
            path.write_bytes(data + b"\0")
        elif how == "zeros":
            path.write_bytes(data[: head.at] + bytes(head.n_bytes))
        elif how == "a link":
            (tmp_path / "elsewhere").write_bytes(data)
            path.symlink_to(tmp_path / "elsewhere")
        elif how == "a folder":
            path.mkdir()
        elif how == "a pipe":
            os.mkfifo(path)
        assert one.read(head) is None
        assert one.store.counts["disk_corrupt"] == (how != "gone")
        assert one.store.counts["disk_read_bytes"] == 0


def test_a_state_with_a_wrong_bit_anywhere_is_not_brought(tmp_path):
    with driven(tmp_path) as one:
        one.listed()
        order = order_of(1)
        (head,) = one.write_all([order]).values()
        path = one.namespace / file_name(head.id)
        data = path.read_bytes()
        for place in range(64):
            torn = bytearray(data)
            torn[head.at + place * (head.n_bytes - 1) // 63] ^= 1 << place % 8
            path.write_bytes(torn)
            assert one.read(head) is None, place
        assert one.store.counts["disk_corrupt"] == 64
        path.write_bytes(data)
        assert one.read(head) == order.state


def test_what_is_not_ours_is_never_deleted(tmp_path):
    head = written(tmp_path, order_of(1))[id_of(1)]
    (namespace,) = tmp_path.glob("*/")
    others = [
        "notes.txt",
        f"{id_of(1)[1:]}.safetensors",
        f"{id_of(2)}.safetensors.bak",
        f".{id_of(3)}.tmp.old",
        ".x.tmp",
    ]
    for name in others:
        (namespace / name).write_text("mine")
    (namespace / file_name("A" * 32)).mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (namespace / unfinished_name(id_of(9))).write_text("half")
    target = tmp_path / "target"
    target.write_bytes(encode_head(head, namespace.name, order_of(1).tokens) + order_of(1).state)
    (namespace / file_name(id_of(4))).symlink_to(target)
    with driven(tmp_path, max_bytes=order_of(1).file_bytes) as one:
        assert one.entries().keys() == {id_of(1)}
        assert one.names == {*others, file_name(id_of(1)), file_name("A" * 32), file_name(id_of(4))}
    assert target.exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_no_more_is_written_than_there_may_be(tmp_path):
    size = order_of(0).file_bytes
    with driven(tmp_path, max_bytes=3 * size + 1) as one:
        one.listed()
        results = [one.write(order_of(number)) for number in range(5)]
        assert [event.head is not None for event in results] == [True, True, True, False, False]
        assert not any(event.full for event in results)
        assert one.store.used_bytes == 3 * size
        one.delete(id_of(0))
        assert one.write(order_of(6)).head
        assert one.write(order_of(7)).head is None


def test_with_room_for_nothing_nothing_is_written(tmp_path):
    with driven(tmp_path, max_bytes=0) as one:
        one.listed()
        assert not one.store.writable
        assert one.write(order_of(1)).head is None
        assert not one.names


def test_a_day_writes_only_so_much(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_writer, "BURST", 2.5 * order_of(0).file_bytes)
    with driven(tmp_path) as one:
        one.listed()
        results = [one.write(order_of(number)).head is not None for number in range(4)]
        assert results == [True, True, False, False]
        assert one.store.counts["disk_slow"] == 2


def test_what_is_not_read_yet_can_be_withdrawn(tmp_path, files):
    with driven(tmp_path, files=files) as one:
        one.listed()
        heads = one.write_all(map(order_of, range(3)))
        with files.gate("open") as gate:
            for head in heads.values():
                one.store.read(head)
            assert gate.reached.wait(30)
            assert [one.store.withdraw(id_of(number)) for number in (0, 1, 1, 5)] == [False, True, False, False]
            gate.opened.set()
            assert [one.event().id for _ in range(2)] == [id_of(0), id_of(2)]
        assert not one.store.has_news


def test_at_the_end_what_was_ordered_is_carried_out(tmp_path, files):
    one = Driven(tmp_path, files=files)
    one.listed()
    with files.gate("create") as gate:
        for number in range(5):
            one.store.write(order_of(number))
        one.store.delete(id_of(3))
        assert gate.reached.wait(30)
        gate.opened.set()
        one.close()
    assert one.names == {file_name(id_of(number)) for number in (0, 1, 2, 4)}


def test_at_the_end_no_order_is_begun_when_time_is_up(tmp_path, files):
    one = Driven(tmp_path, files=files)
    one.listed()
    with files.gate("create") as gate:
        for number in range(5):
            one.store.write(order_of(number))
        assert gate.reached.wait(30)
        when_waited_for(one.store._writer._thread, gate.opened.set)
        one.close(-1.0)
    assert one.names == {file_name(id_of(0))}


def test_the_end_waits_for_no_read_that_hangs(tmp_path, files):
    one = Driven(tmp_path, files=files)
    one.listed()
    (head,) = one.write_all([order_of(1)]).values()
    with files.gate("read") as gate:
        one.store.read(head)
        assert gate.reached.wait(30)
        one.close(0.0)
        assert one.store._reader._thread.is_alive()
        gate.opened.set()
    one.store._reader._thread.join(30)
    event = one.store.next_event()
    assert isinstance(event, Brought)
    assert event.state == order_of(1).state


def test_a_folder_that_cannot_be_listed_is_looked_at_again(tmp_path, files, monkeypatch):
    monkeypatch.setattr(disk_reader, "LOOK_SECONDS", 0.01)
    (head,) = written(tmp_path, order_of(1)).values()
    files.failing["scan"] = errno.EIO
    with driven(tmp_path, files=files) as one:
        assert not one.store.has_news
        del files.failing["scan"]
        assert [entry[0] for entry in one.listed()[0].entries] == [head]
