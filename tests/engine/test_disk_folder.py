"""The disk tier's folder: refused where others could write it and shared by a writer and readers."""

from __future__ import annotations

import errno
import fcntl
import json
import os

import pytest
from support.driven_store import FINGERPRINT, driven, id_of, order_of
from support.faulty_files import FaultyFiles

from llamafast.engine import disk_reader
from llamafast.engine.disk_entry import file_name, unfinished_name
from llamafast.engine.disk_folder import DiskFolder, check_folder
from llamafast.engine.files import Files
from llamafast.engine.namespaces import remove
from llamafast.errors import ConfigError


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
    with pytest.raises(ConfigError, match=rf"^disk_cache\.path: {tmp_path}/disk/below: Not a directory$"):
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


def test_other_programs_folders_are_no_namespaces(tmp_path):
    """Whatever they are called: nothing is made, weighed or deleted there."""
    for name, file, text in (
        ("0" * 16, "lock", "x"),
        ("1" * 16, "namespace.json", '{"secret": "x"}'),
        ("2" * 16, "y", ""),
    ):
        (tmp_path / name).mkdir(mode=0o700)
        (tmp_path / name / file).write_text(text)
    other = closed(tmp_path, model="other")
    mine = opened(tmp_path)
    assert mine.others() == [other.namespace]
    assert len([one for one in tmp_path.rglob("*/*") if one.parent.name[:4] in ("0000", "1111", "2222")]) == 3
    mine.close()


def test_the_lock_of_what_was_deleted_meanwhile_is_none(tmp_path, monkeypatch):
    """Who comes next locks another file of that name: both would write."""
    namespace = closed(tmp_path).namespace
    real, writers = fcntl.flock, []

    def slow(fd, how):
        monkeypatch.setattr(fcntl, "flock", real)
        assert remove(namespace, Files())
        writers.append(opened(tmp_path))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    late = opened(tmp_path)
    assert (late.locked, writers[0].locked) == (False, True)
    writers[0].close()
    assert late.take()
    late.close()


def test_a_lock_goes_with_its_process(tmp_path):
    first = opened(tmp_path)
    assert not opened(tmp_path).locked
    first.close()
    second = opened(tmp_path)
    assert second.locked
    second.close()
