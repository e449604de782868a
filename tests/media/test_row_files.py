"""Files of rows: what was written comes back, and nothing else does."""

from __future__ import annotations

import os
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafast.media.row_files import RowFiles

DIGEST, OTHER = b"d" * 32, b"e" * 32
HEAD = 24


def rows(n: int, value: float = 1.0) -> memoryview:
    return memoryview(array("f", [value] * n))


@pytest.fixture
def files(tmp_path: Path) -> RowFiles:
    return RowFiles(tmp_path / "a" / "b", 10_000)


def only_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.rows")
    return path


def test_what_is_written_is_read_by_its_key_alone(files: RowFiles) -> None:
    files.write(b"s", DIGEST, 1, rows(10, 2.5))
    assert list((files.read(b"s", DIGEST, 1, 40) or memoryview(b"")).cast("f")) == [2.5] * 10
    for salt, digest, chunk, n in ((b"t", DIGEST, 1, 10), (b"s", OTHER, 1, 10), (b"s", DIGEST, 2, 10)):
        assert files.read(salt, digest, chunk, 4 * n) is None
    assert files.counts == {"media_hits_disk": 1, "media_disk_writes": 1, "media_disk_failures": 0}


def test_files_are_for_their_owner(files: RowFiles, tmp_path: Path) -> None:
    files.write(b"", DIGEST, 0, rows(10))
    path = only_file(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_whatever_else_lies_there_is_a_miss_and_goes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("rows")
    files = RowFiles(folder, 10_000)
    files.write(b"", DIGEST, 0, rows(10))
    path = only_file(folder)
    if data == path.read_bytes():
        return
    path.write_bytes(data)
    assert files.read(b"", DIGEST, 0, 40) is None
    assert not path.exists()
    assert files.used_bytes == 0


@pytest.mark.parametrize("at", [0, 9, 17, HEAD, HEAD + 39])
def test_one_changed_byte_is_a_miss(files: RowFiles, tmp_path: Path, at: int) -> None:
    files.write(b"", DIGEST, 0, rows(10))
    path = only_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert files.read(b"", DIGEST, 0, 40) is None


def test_links_and_pipes_are_no_rows(files: RowFiles, tmp_path: Path) -> None:
    files.write(b"", DIGEST, 0, rows(10))
    path = only_file(tmp_path)
    held = path.rename(tmp_path / "held")
    path.symlink_to(held)
    assert files.read(b"", DIGEST, 0, 40) is None
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    began = time.monotonic()
    assert files.read(b"", DIGEST, 0, 40) is None
    assert time.monotonic() - began < 5


def test_the_folder_keeps_to_its_bytes_and_what_is_wanted_stays(files: RowFiles, tmp_path: Path) -> None:
    size = HEAD + 4 * 500
    for seed in range(4):
        files.write(b"", bytes([seed]) * 32, 0, rows(500))
    assert files.read(b"", bytes(32), 0, 2000) is not None  # the oldest is wanted again
    files.write(b"", OTHER, 0, rows(500))
    assert files.used_bytes == 4 * size <= 10_000
    assert files.read(b"", bytes(32), 0, 2000) is not None
    assert files.read(b"", b"\1" * 32, 0, 2000) is None
    files.write(b"", DIGEST, 0, rows(5000))  # larger than all there may be
    assert files.used_bytes == 4 * size
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.rows")) == files.used_bytes


def test_another_server_finds_what_is_there_and_evicts_the_oldest(tmp_path: Path) -> None:
    first = RowFiles(tmp_path, 10_000)
    for seed in range(4):
        first.write(b"", bytes([seed]) * 32, 0, rows(500))
        os.utime(max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns), (seed, seed))
    (tmp_path / "x.new").write_bytes(b"half")
    second = RowFiles(tmp_path, 5_000)
    assert not (tmp_path / "x.new").exists()
    assert second.used_bytes <= 5_000
    assert second.read(b"", b"\3" * 32, 0, 2000) is not None
    assert first.read(b"", bytes(32), 0, 2000) is None
    assert first.used_bytes == 3 * (HEAD + 2000)


def test_with_no_bytes_it_is_only_read(tmp_path: Path) -> None:
    RowFiles(tmp_path, 10_000).write(b"", DIGEST, 0, rows(10))
    reader = RowFiles(tmp_path, 0)
    reader.write(b"", OTHER, 0, rows(10))
    assert len(list(tmp_path.iterdir())) == 1
    assert reader.read(b"", DIGEST, 0, 40) is not None
    only_file(tmp_path).write_bytes(b"broken")
    assert reader.read(b"", DIGEST, 0, 40) is None
    assert only_file(tmp_path).exists()


def test_a_disk_that_fails_costs_nobody_anything(
    files: RowFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        files.write(b"", DIGEST, 0, rows(10))
    assert files.read(b"", DIGEST, 0, 40) is None
    assert list(tmp_path.rglob("*.new")) == []
    assert files.counts["media_disk_failures"] == 1
