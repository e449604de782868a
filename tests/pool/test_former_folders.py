"""What models have left on the disk that the config has no more: it counts, goes first, and is all that goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pool.processes import started
from support.asgi_client import AsgiClient
from support.pooled_apps import bearer, pooled

from llamafast.api.keys import Keys
from llamafast.config import DiskCacheConfig, ModelConfig
from llamafast.engine.disk_entry import file_name
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.namespaces import ABOUT, LOCK
from llamafast.pool.division import disk_folder
from llamafast.pool.former import FormerFolders, keep_room

PART = 100 * 4096  # bytes of one file
MODELS = (ModelConfig(path="m", alias="chat"), ModelConfig(path="m", alias="org/other"))


def wrote(folder: Path, n_files: int, used_at: float, fingerprint: str = "f") -> DiskFolder:
    """What a model's process leaves in its folder, or leaves there while it runs; with a little for lock and secret."""
    one = DiskFolder(folder, {"model": fingerprint})
    for i in range(n_files):
        one.path(f"{i:032x}").write_bytes(b"x" * (PART - 4096))
    for file in one.namespace.iterdir():
        os.utime(file, (used_at, used_at))
    return one


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.mkdir(mode=0o700)
    return path


def of(disk: Path, n_parts: int, alias: str) -> Path:
    return disk_folder(DiskCacheConfig(path=str(disk), max_bytes=n_parts * PART), ModelConfig(path="m", alias=alias))


def former(disk: Path, n_parts: int) -> FormerFolders:
    return FormerFolders(DiskCacheConfig(path=str(disk), max_bytes=n_parts * PART), MODELS)


def names(disk: Path) -> set[str]:
    return {one.name.rpartition("-")[0] or one.name for one in disk.iterdir()}


def test_what_was_not_used_for_longest_goes_until_there_is_room(disk: Path) -> None:
    for alias, used_at in (("b", 200.0), ("a", 300.0), ("chat", 1.0), ("c", 100.0)):
        wrote(of(disk, 9, alias), 2, used_at).close()
    assert former(disk, 9).make_room()
    assert names(disk) == {"chat", "a", "b", "c"}
    assert former(disk, 5).make_room()
    assert names(disk) == {"chat", "a"}
    assert not former(disk, 2).make_room()
    assert names(disk) == {"chat"}
    assert not former(disk, 0).make_room()
    assert len(list(disk.rglob("*.safetensors"))) == 2  # a model's own are its own matter


def test_several_namespaces_of_one_and_that_of_a_server_with_one_model(disk: Path) -> None:
    gone = of(disk, 9, "renamed")
    for fingerprint, used_at in (("f", 10.0), ("g", 500.0)):
        wrote(gone, 2, used_at, fingerprint).close()
    single = wrote(disk, 2, 400.0)
    single.close()
    assert former(disk, 5).make_room()
    assert names(disk) == {"renamed"}  # its last use counts
    assert not former(disk, 3).make_room()
    assert names(disk) == set()


def test_what_is_not_certainly_of_a_former_model_stays(disk: Path, tmp_path: Path) -> None:
    held = wrote(of(disk, 9, "held"), 2, 1.0)
    open_to_others = of(disk, 9, "open")
    wrote(open_to_others, 2, 1.0).close()
    open_to_others.chmod(0o777)
    mixed = of(disk, 9, "mixed")
    wrote(mixed, 2, 1.0).close()
    (mixed / "thesis.tex").write_text("years")
    elsewhere = tmp_path / "elsewhere"
    wrote(elsewhere, 2, 1.0).close()
    (disk / "link-01234567").symlink_to(elsewhere)
    (disk / "photos").mkdir()
    # what other programs call so
    for place, name in (
        ("0123456789abcdef", LOCK),
        ("0123456789abcdef.bad", "x"),
        ("backup-01234567/" + "a" * 16, ABOUT),
    ):
        (disk / place).mkdir(mode=0o700, parents=True)
        (disk / place / name).write_text("years")
    (disk / "backup-01234567").chmod(0o700)
    (disk / "empty-01234567").mkdir()
    (disk / "file-01234567").write_text("x")
    before = sorted(disk.rglob("*"))
    assert former(disk, 0).make_room()  # what is held may be let go
    assert former(disk, 0).clear() == 0
    assert sorted(disk.rglob("*")) == before
    assert len(list(elsewhere.rglob("*.safetensors"))) == 2
    held.close()
    assert not former(disk, 0).make_room()
    assert "held" not in names(disk)


def test_a_strangers_file_among_them_stays_and_ours_go(disk: Path) -> None:
    namespace = wrote(of(disk, 9, "gone"), 2, 1.0)
    namespace.close()
    (namespace.namespace / "thesis.tex").write_text("years")
    assert former(disk, 0).make_room()
    assert [one.name for one in disk.rglob("*") if one.is_file()] == ["thesis.tex"]
    assert not former(disk, 0).make_room()  # and it is nobody's business any more


def test_what_another_server_has_in_its_config_is_its_own(disk: Path) -> None:
    wrote(of(disk, 9, "theirs"), 2, 1.0).close()
    section = DiskCacheConfig(path=str(disk), max_bytes=0)
    other = FormerFolders(section, [ModelConfig(path="m", alias="theirs"), ModelConfig(path="m", alias="chat")])
    other.claim()
    ours = former(disk, 0)
    ours.claim()
    wrote(of(disk, 9, "chat"), 1, 1.0).close()
    assert ours.make_room()
    assert ours.clear() == 0
    assert not other.make_room() or other.clear() == 0
    assert len(list(disk.rglob("*.safetensors"))) == 3
    other.release()
    assert not ours.make_room()
    assert names(disk) == {"chat", "org_other"}
    ours.release()


def test_a_reset_takes_what_is_ours_of_models_that_are_not_loaded(disk: Path) -> None:
    own = of(disk, 9, "chat")
    wrote(own, 2, 1.0).close()
    held = wrote(own, 1, 1.0, "g")  # another server with such a model
    (own / "thesis.tex").write_text("years")
    assert PART < former(disk, 9).clear([own, of(disk, 9, "org/other")]) < 2 * PART
    assert len(list(disk.rglob("*.safetensors"))) == 1
    assert (own / "thesis.tex").exists()
    held.close()


def test_a_namespace_that_was_only_begun_goes_with_its_folder(disk: Path) -> None:
    place = of(disk, 9, "gone")
    wrote(place, 2, 1.0).close()
    (place / ("b" * 16)).mkdir(mode=0o700)
    (place / ("b" * 16) / LOCK).touch(0o600)
    assert not former(disk, 0).make_room()
    assert names(disk) == set()


def test_a_folder_that_is_not_there_or_not_ours_alone_is_left_alone(disk: Path, tmp_path: Path) -> None:
    assert not former(tmp_path / "none", 0).make_room()
    wrote(of(disk, 9, "gone"), 2, 1.0).close()
    disk.chmod(0o777)
    assert not former(disk, 0).make_room()
    assert names(disk) == {"gone"}


async def test_it_is_looked_at_as_long_as_something_may_have_to_go(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafast.pool.former.WEIGH_SECONDS", 0.0)
    wrote(of(disk, 9, "gone"), 2, 1.0).close()
    own = of(disk, 9, "chat")
    looks = 0

    class Watched(FormerFolders):
        def make_room(self) -> bool:
            nonlocal looks
            looks += 1
            if looks == 3:
                wrote(own, 3, 5.0).close()
            return super().make_room()

    await keep_room(Watched(DiskCacheConfig(path=str(disk), max_bytes=4 * PART), MODELS))
    assert looks == 3
    assert names(disk) == {"chat", "org_other"}


async def test_a_reset_forgets_them_too(folder: Path, keys: Keys) -> None:
    disk = folder / "disk"
    wrote(of(disk, 9, "gone"), 2, 1.0).close()
    section = {"path": str(disk), "max_bytes": 9 * PART}
    async with pooled(folder, {"alias": "a", "load": "on_demand"}, keys=keys, disk_cache=section) as pool:
        answer = await AsgiClient(pool.app).get("/reset_prefix_cache", "POST", **bearer("root"))
    assert answer.status == 200
    assert PART < answer.json["freed_bytes"] < 2 * PART
    assert list(disk.iterdir()) == []


@pytest.mark.scale
def test_a_server_makes_room_for_its_models(folder: Path) -> None:
    disk = folder / "disk"
    for alias in ("a", "gone"):
        wrote(of(disk, 9, alias), 2, 1.0).close()
    config = {"models": [{"alias": "a", "path": "m"}], "disk_cache": {"path": str(disk), "max_bytes": 3 * PART}}
    with started(folder, config, stubs=True) as server:
        server.until(lambda: names(disk) == {"a"})
        assert "no model has any more" in server.process.log
    assert len(list(disk.rglob(file_name("*")))) == 2
