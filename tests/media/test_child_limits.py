"""What laying media out may take of the process for media, and that a slow one holds up neither lane but its own."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.encoding import Job, begin, laid_out
from support.media_prompts import png, wav

from llamafast.errors import InvalidMedia, ProjectorFailure
from llamafast.media import child as child_module
from llamafast.media import process as process_module
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.process import MediaProcess
from llamafast.media.wire import LayOut

PICTURE, SOUND, VIDEO = png(96, 80, 1), wav(0.2, 440), b"\0\0\0\x18ftypmp42"
# what stands in for a reader in the child
NEVER = "import threading\ndef never(*_, **__):\n    threading.Event().wait()\n"
FOR_EVER = "def for_ever(*_, **__):\n    while True:\n        pass\n"
FAULTY = "import errno\ndef faulty(*_, **__):\n    raise {}\n"


@pytest.fixture
def started(monkeypatch):
    """A function that starts a process whose child runs some code before it serves."""
    processes = []

    def start(code, **options):
        program = f"import sys\nimport llamafast.media.child as child\n{code}\nchild.main(int(sys.argv[1]))"

        def popen(command, **settings):
            return subprocess.Popen([sys.executable, "-c", program, command[-1]], **settings)

        monkeypatch.setattr(process_module, "subprocess", SimpleNamespace(Popen=popen, DEVNULL=subprocess.DEVNULL))
        monkeypatch.setattr(process_module, "FIRST_PAUSE", 0.01)
        process = MediaProcess(begin(**options))
        processes.append(process)
        process.start()
        return process

    yield start
    for process in processes:
        process.close()


def asked(process, data, kind):
    return process.lay_out(AnonymousFile.of(data), kind, False)


@pytest.mark.parametrize(
    ("reader", "slow", "others"),
    [
        ("picture_size", (PICTURE, "image"), (SOUND, "audio")),
        ("read_sound", (SOUND, "audio"), (PICTURE, "image")),
        ("probe_video", (VIDEO, "video"), (PICTURE, "image")),
    ],
)
def test_pictures_and_what_takes_long_do_not_wait_for_each_other(started, reader, slow, others):
    process = started(f"{NEVER}child.{reader} = never")
    waits = asked(process, *slow)
    for _ in range(2):
        assert laid_out(process, *others)
    assert not waits.done()


def test_files_are_mapped_in_their_turn(started):
    """Else those that wait would take the memory that the first one needs."""
    process = started(f"{NEVER}child.picture_size = never")
    for _ in range(20):
        asked(process, PICTURE, "image")
    assert laid_out(process, SOUND, "audio")  # which came behind all of them
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    # of the first picture, and of the sound, which is kept until it is encoded
    assert 1 <= maps.count("memfd:llamafast") <= 2


def test_what_nobody_waits_for_any_more_is_not_looked_at(started):
    """Else whoever sends recordings and leaves takes the time of all who stay, and memory for each of their files."""
    process = started(f"{NEVER}child.read_sound = never")
    first, *others = [asked(process, SOUND, "audio") for _ in range(9)]
    cut = process.cut(AnonymousFile.of(SOUND), 30.0)
    for one in (cut, *others):
        process.drop(one)
    assert [one.result(30) for one in others] == [[]] * 8
    assert cut.result(30) == []
    assert not first.done()
    descriptors = Path(f"/proc/{process.pid}/fd").iterdir()
    # of the first one, and once more where it is mapped
    assert 1 <= sum("memfd:llamafast" in os.readlink(one) for one in descriptors) <= 2


@pytest.mark.heavy
def test_a_layout_that_takes_too_much_of_the_cpu_is_refused(started):
    """After two tries, as it may have been another one's fault; what waits behind it is laid out."""
    process = started(f"{FOR_EVER}child.LAY_OUT_SECONDS, child.read_sound = 0.3, for_ever")
    endless, behind = asked(process, SOUND, "audio"), asked(process, PICTURE, "image")
    assert isinstance(endless.exception(30), ProjectorFailure)
    assert behind.result(30)
    assert process.counts["media_restarts"] == 2


class LimitTold(Exception):
    pass


class ToldLimit:
    """In place of a CpuLimit: ends whoever is to be limited."""

    def begin(self, job, seconds):
        raise LimitTold(seconds)


@pytest.mark.parametrize("n_threads", [1, 3])
def test_what_encodes_meanwhile_is_not_laid_to_a_layout(n_threads):
    """The clock is the whole process's: all threads of an encode run on it."""
    child = child_module.Child.__new__(child_module.Child)
    child._begin, child._limit = begin(n_threads=n_threads), ToldLimit()
    layouts = queue.SimpleQueue()
    layouts.put((LayOut(job=1, kind="audio", low_detail=False), None))
    with pytest.raises(LimitTold) as told:
        child._lay_out_all(layouts)
    assert told.value.args == (child_module.LAY_OUT_SECONDS * (1 + n_threads),)


def test_a_video_is_looked_at_for_a_short_while_only(started, monkeypatch, tmp_path):
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    process = started("child.PROBE_SECONDS = 0.1")
    with pytest.raises(InvalidMedia, match="reading this takes too long"):
        laid_out(process, VIDEO, "video")


NO_MEMORY = ("MemoryError", "OSError(errno.ENOMEM, None)")


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize(
    ("where", "kind", "data"),
    [
        ("picture_size", "image", PICTURE),
        ("read_sound", "audio", SOUND),
        ("sys.modules['llamafast.media.lane'].mapped", "image", PICTURE),
    ],
)
def test_what_there_is_no_memory_for_is_refused_and_hurts_nobody(started, error, where, kind, data):
    process = started(f"{FAULTY.format(error)}child.{where} = faulty")
    pid = process.pid
    for _ in range(2):
        with pytest.raises(InvalidMedia, match=f"the {kind} takes more memory than there is for it"):
            laid_out(process, data, kind)
    assert process.pid == pid
    assert process.counts["media_restarts"] == 0


@pytest.mark.parametrize("error", NO_MEMORY)
def test_nor_is_what_cannot_be_encoded_for_want_of_it_the_servers_fault(started, error):
    process = started(f"{FAULTY.format(error)}child.read_picture = faulty")
    assert laid_out(process, PICTURE)
    with pytest.raises(InvalidMedia, match="the image takes more memory than there is for it"):
        Job(PICTURE).result(process)


def test_another_fault_of_the_system_is_not_the_clients(started):
    process = started(f"{FAULTY.format('OSError(errno.EIO)')}child.picture_size = faulty")
    with pytest.raises(ProjectorFailure, match="the projector failed on this image"):
        laid_out(process, PICTURE)
