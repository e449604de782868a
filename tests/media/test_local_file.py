"""Files of the server's: below the one folder, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from llamafast.errors import InvalidMedia
from llamafast.media.limits import ByteLimit, FetchedBytes, FetchedItem
from llamafast.media.local_file import read_local_file

LIMIT = ByteLimit("audio", 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "deep er").mkdir(parents=True)
    (folder / "deep er" / "a.wav").write_bytes(b"sound")
    (folder / "large.wav").write_bytes(bytes(101))
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "in").symlink_to(folder / "deep er" / "a.wav")
    (tmp_path / "media-too").mkdir()
    (tmp_path / "media-too" / "a").write_bytes(b"secret")
    os.mkfifo(folder / "pipe")
    return folder


def read(url: str, folder: Path | None) -> bytes:
    return read_local_file(urlsplit(url), folder, LIMIT, FetchedItem(FetchedBytes(LIMIT.n_bytes)))


def test_a_file_below_the_folder_is_read(folder: Path) -> None:
    for url in (
        f"file://{quote(str(folder))}/deep%20er/a.wav",
        f"file://localhost{folder}/deep er/a.wav",
        f"file:{folder}/in",
    ):
        assert read(url, folder) == b"sound"


def test_the_folder_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert read(f"file://{tmp_path}/link/deep er/a.wav", tmp_path / "link") == b"sound"


@pytest.mark.parametrize(
    "path", ["", "/", "/out", "/../secret", "/%2e%2e/secret", "-too/a", "/pipe", "/deep er", "/none", "/a%00b"]
)
def test_nothing_else_is_and_nothing_is_told_of_it(folder: Path, path: str) -> None:
    with pytest.raises(InvalidMedia) as caught:
        read(f"file://{folder}{path}", folder)
    assert caught.value.message == "the file cannot be read, or is not in model.mtmd.allowed_local_media_path"


def test_other_hosts_sizes_and_servers_without_a_folder(folder: Path) -> None:
    for url, given, sentence in (
        (f"file://elsewhere{folder}/in", folder, "files of this server"),
        (f"file://{folder}/large.wav", folder, r"model.mtmd.audio_max_bytes \(100\)"),
        (f"file://{folder}/in", None, "need model.mtmd.allowed_local_media_path"),
    ):
        with pytest.raises(InvalidMedia, match=sentence):
            read(url, given)
