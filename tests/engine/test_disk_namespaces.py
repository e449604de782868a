"""What others have in the disk tier's folder: it counts, and leaves first; what is nobody's namespace is left alone."""

from __future__ import annotations

import os

import pytest
from support.driven_store import FINGERPRINT, Driven, driven, id_of, order_of
from support.faulty_files import FaultyFiles

from llamafast.engine.disk_entry import file_name, unfinished_name
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.namespaces import remove

SIZE = order_of(0).file_bytes


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
    folder = DiskFolder(tmp_path, FINGERPRINT)
    assert not remove(place, folder.files)
    assert [path.name for path in place.iterdir()] == ["notes.txt"]
    (place / "notes.txt").unlink()
    assert remove(place, folder.files)
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
                    remove(place, one.folder.files)
            return iter(found)

    again = Driven(tmp_path, files=Vanishing())
    assert again.entries().keys() == {id_of(1)}
    again.close()
