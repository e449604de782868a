"""The disk tier's folder: refused where others could write it, shared by a writer and readers, and kept small."""

from __future__ import annotations

import errno
import json
import os

import pytest
from support.driven_store import FINGERPRINT, Driven, driven, id_of, order_of
from support.faulty_files import FaultyFiles

from llamafast.engine import disk_reader
from llamafast.engine.disk_entry import file_name, unfinished_name
from llamafast.engine.disk_folder import DiskFolder, check_folder
from llamafast.errors import ConfigError

SIZE = order_of(0).file_bytes


def opened(path, files=None, **about):
    return DiskFolder(path, FINGERPRINT | about, files)


def closed(path, **about):
    """A namespace as a process leaves it."""
    folder = opened(path, **about)
    folder.close()
    return folder


def test_a_folder_is_made_with_those_above_it(tmp_path):
    folder = opened(tmp_path / "a" / "b")
    assert folder.locked
    assert (folder.namespace.parent, len(folder.name)) == (tmp_path / "a" / "b", 16)
    for path in (tmp_path / "a" / "b", folder.namespace):
        assert path.stat().st_mode & 0o777 == 0o700
    folder.close()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722, 0o702, 0o1777])
def test_what_others_can_write_is_refused(tmp_path, mode):
    place = tmp_path / "disk"
    place.mkdir()
    place.chmod(mode)
    for use in (check_folder, opened):
        with pytest.raises(ConfigError, match=r"disk_cache.path: .* alone to write"):
            use(place)
    assert list(place.iterdir()) == []


def test_a_namespace_that_others_can_write_is_refused(tmp_path):
    closed(tmp_path).namespace.chmod(0o770)
    with pytest.raises(ConfigError, match="alone to write"):
        opened(tmp_path)


def test_what_is_somebody_elses_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(ConfigError, match="alone to write"):
        check_folder(tmp_path)


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "disk").write_text("")
    with pytest.raises(ConfigError, match=r"disk_cache\.path"):
        check_folder(tmp_path / "disk")
    with pytest.raises(ConfigError, match=r"disk_cache\.path"):
        check_folder(tmp_path / "disk" / "below")


def test_what_cannot_be_made_is_refused(tmp_path):
    files = FaultyFiles()
    files.failing["make_folder"] = errno.ENOSPC
    with pytest.raises(ConfigError, match="No space left"):
        check_folder(tmp_path / "disk", files)
    files.failing["make_folder"] = errno.EACCES
    with pytest.raises(ConfigError, match="No such file"):
        check_folder(tmp_path / "disk", files)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "target").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="is not a folder"):
        check_folder(tmp_path / "link")
    name = closed(tmp_path / "disk").name
    (tmp_path / "other").mkdir(0o700)
    (tmp_path / "other" / name).symlink_to(tmp_path / "target")
    with pytest.raises(ConfigError, match="is not a folder"):
        opened(tmp_path / "other")
    assert list((tmp_path / "target").iterdir()) == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    namespace = closed(tmp_path / "disk").namespace
    (namespace / "lock").unlink()
    (namespace / "lock").symlink_to(tmp_path / "made")
    assert not opened(tmp_path / "disk").locked
    assert not (tmp_path / "made").exists()


def test_namespaces_are_told_apart_by_all_that_is_in_the_fingerprint(tmp_path):
    names = {closed(tmp_path, **about).name for about in ({}, {"a": 1}, {"a": 2}, {"a": [1, None]}, {"b": 1})}
    assert len(names) == 5
    assert closed(tmp_path, a=1, b=2).name == closed(tmp_path, b=2, a=1).name


def test_salts_keep_what_stands_for_them(tmp_path):
    first = closed(tmp_path)
    again, other = closed(tmp_path), closed(tmp_path, a=1)
    assert first.root(b"salt") == again.root(b"salt") != other.root(b"salt")
    assert len({first.root(salt) for salt in (b"salt", b"salt ", b"pepper", b"")}) == 4
    assert first.root(b"") == other.root(b"") == b""
    assert b"salt" not in first.root(b"salt")
    assert len(first.root(b"salt")) == 32


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "{}", '{"secret": 5}', '{"secret": "zz"}', '{"secret": "ab"}', "\0"]
)
def test_a_torn_secret_is_replaced(tmp_path, text):
    first = closed(tmp_path)
    about = first.namespace / "namespace.json"
    told = json.loads(about.read_bytes())
    about.write_text(text)
    second = closed(tmp_path)
    assert second.root(b"salt") != first.root(b"salt")
    assert closed(tmp_path).root(b"salt") == second.root(b"salt")
    again = json.loads(about.read_bytes())
    assert again.pop("secret") != told.pop("secret")
    assert again == told


def test_a_secret_of_another_fingerprint_is_replaced(tmp_path):
    first, other = closed(tmp_path), closed(tmp_path, a=1)
    (first.namespace / "namespace.json").write_bytes((other.namespace / "namespace.json").read_bytes())
    assert closed(tmp_path).root(b"salt") not in (first.root(b"salt"), other.root(b"salt"))


@pytest.mark.parametrize("name", ["lock", "create", "write", "rename"])
def test_where_nothing_can_be_written_it_is_read(tmp_path, name):
    with driven(tmp_path) as writer:
        writer.listed()
        (head,) = writer.write_all([order_of(1)]).values()
    if name != "lock":
        (writer.namespace / "namespace.json").unlink()
    files = FaultyFiles()
    files.failing[name] = errno.EROFS
    with driven(tmp_path, files=files) as reader:
        assert not reader.folder.locked
        assert not reader.store.writable
        assert reader.entries().keys() == {head.id}
        assert reader.read(head) == order_of(1).state


def test_two_on_one_folder_are_a_writer_and_a_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_reader, "LOOK_SECONDS", 0.0)
    with driven(tmp_path) as writer, driven(tmp_path) as reader:
        assert (writer.folder.locked, reader.folder.locked) == (True, False)
        assert writer.folder.root(b"salt") == reader.folder.root(b"salt")
        writer.listed()
        (head,) = writer.write_all([order_of(1)]).values()
        while not (told := reader.event()).entries:
            pass
        assert [entry[0] for entry in told.entries] == [head]
        reader.store.delete(head.id)
        reader.store.touch(head.id)
        half = writer.namespace / unfinished_name(id_of(5))
        half.write_bytes(b"half")
        torn = writer.namespace / file_name(id_of(6))
        torn.write_bytes(b"torn")
        for _ in range(3):
            reader.event()
        reader.carried_out()
        assert half.exists()
        assert torn.exists()
        assert writer.names >= {file_name(head.id)}


def test_who_reads_may_find_that_it_was_deleted(tmp_path):
    with driven(tmp_path) as writer:
        writer.listed()
        (head,) = writer.write_all([order_of(1)]).values()
        with driven(tmp_path) as reader:
            assert reader.entries().keys() == {head.id}
            writer.delete(head.id)
            assert reader.read(head) is None


def test_a_lock_goes_with_its_process(tmp_path):
    first = opened(tmp_path)
    assert not opened(tmp_path).locked
    first.close()
    second = opened(tmp_path)
    assert second.locked
    second.close()


def foreign(path, about, n, used_at):
    """Another namespace with some entries."""
    with driven(path, about=about) as one:
        one.listed()
        one.write_all(order_of(100 * used_at + number) for number in range(n))
    for each in one.namespace.iterdir():
        os.utime(each, (used_at, used_at))
    return one.namespace


def test_what_others_take_counts_until_it_has_to_leave(tmp_path):
    places = {used_at: foreign(tmp_path, f"other {used_at}", 2, used_at) for used_at in (7, 5)}
    with driven(tmp_path, max_bytes=6 * SIZE) as one:
        one.listed()
        assert one.store.used_bytes >= 4 * SIZE
        assert one.store.elsewhere == 0
        for number in range(6):
            assert one.write(order_of(number)).head is not None
            assert one.store.used_bytes <= 6 * SIZE
            assert places[7].exists() or not places[5].exists()
        assert not places[7].exists()
        assert one.store.counts["disk_foreign"] == 2
        assert one.write(order_of(9)).head is None


def test_what_of_another_cannot_be_deleted_goes_on_to_count(tmp_path):
    place = foreign(tmp_path, "other", 2, 5)
    (place / "notes.txt").write_text("mine" * 1024)
    with driven(tmp_path, max_bytes=4 * SIZE) as one:
        one.listed()
        results = [one.write(order_of(number)).head is not None for number in range(4)]
        assert results == [True, True, True, False]
        assert [path.name for path in place.iterdir()] == ["notes.txt"]
        assert one.store.elsewhere == 4096
        assert one.store.counts["disk_foreign"] == 0


def test_what_is_set_aside_is_the_first_to_leave(tmp_path):
    other = foreign(tmp_path, "other", 1, 5)
    with driven(tmp_path, max_bytes=8 * SIZE) as one:
        one.listed()
        heads = one.write_all(map(order_of, range(3)))
        one.store.set_aside()
        one.carried_out()
        place = one.namespace.with_name(f"{one.folder.name}.bad")
        assert len(list(place.glob("*.safetensors"))) == 3
        assert one.names == set()
        used = one.store.used_bytes
        assert used >= 4 * SIZE
        one.delete(id_of(0))
        assert one.store.used_bytes == used
        assert one.read(heads[id_of(1)]) is None
        assert one.write(order_of(50, base=order_of(2))).head is None
        one.write_all(map(order_of, range(10, 15)))
        assert not place.exists()
        assert other.exists()
        assert one.store.used_bytes <= 8 * SIZE
        one.store.set_aside()
        one.carried_out()
        one.store.set_aside()
        one.carried_out()
        assert one.write(order_of(20)).head is not None
    with driven(tmp_path, max_bytes=8 * SIZE) as one:
        assert one.entries().keys() == {id_of(20)}


def test_who_only_reads_sets_nothing_aside(tmp_path):
    with driven(tmp_path) as writer:
        writer.listed()
        writer.write_all([order_of(1)])
        with driven(tmp_path) as reader:
            reader.store.set_aside()
            reader.carried_out()
        assert writer.names == {file_name(id_of(1))}


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    places = {used_at: foreign(tmp_path, f"other {used_at}", 4, used_at) for used_at in (7, 3, 9, 5)}
    with driven(tmp_path, max_bytes=10 * SIZE) as one:
        one.listed()
        assert sorted(used_at for used_at, place in places.items() if place.exists()) == [7, 9]
        assert one.store.counts["disk_foreign"] == 2
        assert one.store.used_bytes <= 10 * SIZE


def test_a_namespace_that_somebody_writes_is_not_deleted(tmp_path):
    with driven(tmp_path, about="other") as other:
        other.listed()
        other.write_all(map(order_of, range(3)))
        with driven(tmp_path, max_bytes=1) as one:
            one.listed()
            assert other.names == {file_name(id_of(number)) for number in range(3)}
            assert one.store.counts["disk_foreign"] == 0
            assert one.write(order_of(9)).head is None


def test_of_a_namespace_only_what_is_ours_is_deleted(tmp_path):
    place = foreign(tmp_path, "other", 2, 5)
    (place / "notes.txt").write_text("mine")
    (place / unfinished_name(id_of(1))).write_text("half")
    folder = opened(tmp_path)
    assert not folder.remove(place)
    assert [path.name for path in place.iterdir()] == ["notes.txt"]
    (place / "notes.txt").unlink()
    assert folder.remove(place)
    assert not place.exists()
    folder.close()


def test_folders_with_other_names_are_left_alone(tmp_path):
    for name in ("photos", "A" * 16, "0" * 15, "0" * 17):
        (tmp_path / name).mkdir()
        (tmp_path / name / file_name(id_of(1))).write_bytes(bytes(10_000))
    with driven(tmp_path, max_bytes=1) as one:
        one.listed()
        assert one.store.elsewhere == 0
    assert len(list(tmp_path.glob(f"*/{file_name(id_of(1))}"))) == 4


def test_a_link_to_another_folder_is_no_namespace(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / file_name(id_of(1))).write_bytes(bytes(10_000))
    (tmp_path / "disk").mkdir(0o700)
    (tmp_path / "disk" / ("0" * 16)).symlink_to(target)
    with driven(tmp_path / "disk", max_bytes=1) as one:
        one.listed()
    assert [path.name for path in target.iterdir()] == [file_name(id_of(1))]


def strange(place, what):
    if what == "a pipe":
        os.mkfifo(place)
    elif what == "a dangling link":
        place.symlink_to("nowhere")


@pytest.mark.parametrize("what", ["a pipe", "a dangling link"])
def test_what_is_no_folder_hides_no_entries(tmp_path, what):
    with driven(tmp_path) as one:
        one.listed()
        one.write_all([order_of(1)])
    strange(tmp_path / ("0" * 16), what)
    with driven(tmp_path) as one:
        assert one.entries().keys() == {id_of(1)}


def test_a_namespace_that_goes_meanwhile_hides_no_entries(tmp_path):
    """Another process may delete it between two looks."""
    foreign(tmp_path, "other", 1, 5)
    with driven(tmp_path) as one:
        one.listed()
        one.write_all([order_of(1)])

    class Vanishing(FaultyFiles):
        def scan(self, path):
            found = list(super().scan(path))
            if path == tmp_path:
                for place in one.folder.others():
                    one.folder.remove(place)
            return iter(found)

    again = Driven(tmp_path, files=Vanishing())
    assert again.entries().keys() == {id_of(1)}
    again.close()
