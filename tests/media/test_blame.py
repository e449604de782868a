"""Who is to blame when the process for media dies, and who is asked for once more; the child does as it is told."""

from __future__ import annotations

import gc
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from types import SimpleNamespace

import pytest
from support import scripted_child
from support.encoding import Job
from support.scripted_child import n_tries

from llamafast.engine.media import MediaRows, Medium
from llamafast.errors import EngineFailure, EngineUnavailable, InvalidMedia, ProjectorFailure
from llamafast.media import process as process_module
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.encoder import Encoder
from llamafast.media.process import MediaProcess
from llamafast.media.wire import Begin

BEGIN = Begin(
    model="m", projector="p", n_threads=1, device=None, flash_attn=None, batch_max_tokens=1, image_max_tokens=1,
    image_max_pixels=1, audio_max_seconds=1.0, video_max_seconds=1.0, video_max_frames=1, encode_max_seconds=1.0,
    n_nice=0,
)  # fmt: skip


@pytest.fixture
def faults():
    """For each of these a process ends before it has begun."""
    return []


@pytest.fixture
def process(monkeypatch, faults):
    def start(command, **options):
        program = ["-c", faults.pop()] if faults else [scripted_child.__file__]
        return subprocess.Popen([sys.executable, *program, command[-1]], **options)

    stand_in = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(process_module, "subprocess", stand_in)
    monkeypatch.setattr(process_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(process_module, "LONGEST_PAUSE", 0.01)
    process = MediaProcess(BEGIN)
    process.start()
    yield process
    process.close()


class Asked:
    """A layout."""

    def __init__(self, process, letters, kind="image"):
        self.file = AnonymousFile.of(letters)
        self.future = process.lay_out(self.file, kind, False)

    def result(self):
        return self.future.result(30)

    def failure(self):
        return self.future.exception(30)


def encoding(process, letters, kind="audio"):
    job = Job(letters, kind)
    process.encode(job)
    return job


def test_an_encode_beside_a_layout_that_kills_is_asked_for_once_more(process):
    job, layout = encoding(process, b"ha"), Asked(process, b"da")
    assert len(layout.result()) == 1
    assert list(job.outcome()[0]) == [1.0]
    assert (n_tries(job.file), n_tries(layout.file)) == (2, 2)
    assert (process.counts["media_restarts"], process.counts["media_failures"]) == (1, 0)


def test_an_encode_is_asked_for_again_once_and_no_more(process):
    job, layout = encoding(process, b"hhh"), Asked(process, b"dd")
    behind = encoding(process, b"a", "image")
    with pytest.raises(ProjectorFailure, match="the projector failed on this audio"):
        job.outcome()
    assert isinstance(layout.failure(), ProjectorFailure)
    behind.outcome()
    # layouts come first: the second process died before it knew of more
    assert (n_tries(job.file), n_tries(layout.file), n_tries(behind.file)) == (1, 2, 1)
    assert len(job.ends) == 1


def test_an_encode_alone_is_to_blame_and_what_waits_behind_it_is_not(process):
    job, behind = encoding(process, b"dh"), encoding(process, b"a")
    with pytest.raises(ProjectorFailure):
        job.outcome()
    behind.outcome()
    assert (n_tries(job.file), n_tries(behind.file)) == (1, 1)


def test_the_first_layout_of_its_lane_is_to_blame_for_two_deaths(process):
    """Those of the other lane had answers, and who was behind it had not begun: it has two tries of its own."""
    pictures = [Asked(process, b"ha") for _ in range(2)]
    sound, behind = Asked(process, b"dd", "audio"), Asked(process, b"da", "video")
    with pytest.raises(ProjectorFailure, match="the projector failed on this audio"):
        sound.result()
    assert all(len(asked.result()) == 1 for asked in [*pictures, behind])
    assert process.counts["media_restarts"] == 3


def test_in_each_lane_one_layout_may_be_to_blame(process):
    picture, sound = Asked(process, b"hhh"), Asked(process, b"dd", "video")
    behind = [Asked(process, b"a"), Asked(process, b"a", "audio")]
    assert str(picture.failure()) == "the projector failed on this image"
    assert str(sound.failure()) == "the projector failed on this video"
    assert all(len(asked.result()) == 1 for asked in behind)


def test_a_layout_nobody_waits_for_is_not_asked_for_again(process):
    gone = Asked(process, b"hh")
    process.drop(gone.future)
    assert len(Asked(process, b"da").result()) == 1
    assert n_tries(gone.file) == 1


def test_whoever_left_is_not_told_that_its_layout_is_to_blame(process):
    """And the thread that would tell it lives on."""
    gone, others = Asked(process, b"hh"), [Asked(process, b"da", "audio")]
    others[0].result()
    assert n_tries(gone.file) == 2
    process.drop(gone.future)
    others.append(Asked(process, b"da", "audio"))
    assert len(others[1].result()) == 1


@pytest.mark.parametrize("letters", [b"a", b"i"])
def test_an_answer_for_somebody_who_left_disturbs_nobody(process, caplog, letters):
    process.pause()
    gone, other = Asked(process, letters), Asked(process, b"a")
    process.drop(gone.future)
    process.resume()
    assert len(other.result()) == 1
    assert n_tries(gone.file) == 1
    assert not caplog.records


def test_close_tells_whoever_waits_and_not_who_left(process):
    gone, waits = Asked(process, b"h"), Asked(process, b"h")
    process.drop(gone.future)
    process.close()
    assert isinstance(waits.failure(), EngineUnavailable)


def test_rows_that_cannot_be_taken_fail_their_medium_once(process, caplog):
    job, wrong = Job(b"a"), ValueError("other rows than were laid out")

    def refuse(chunk, rows):
        raise wrong

    job.on_rows = refuse
    with pytest.raises(ProjectorFailure, match="the projector failed on this image"):
        job.result(process)
    # its rows are followed by word that it is done
    encoding(process, b"a").outcome()
    assert len(job.ends) == 1
    assert [record.exc_info[1] for record in caplog.records] == [wrong]


def n_open():
    """Of files that have no name, as media and their rows are handed over; threads of other tests may open others."""
    gc.collect()
    n = 0
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # that of the list itself
            status = os.fstat(int(name))
            n += stat.S_ISREG(status.st_mode) and not status.st_nlink
    return n


def test_no_answer_leaves_a_descriptor_open(process, monkeypatch, caplog):
    """Neither what nobody has asked for, nor what could not be mapped."""
    # a record of the failure would hold its job
    caplog.set_level(logging.CRITICAL, process_module.__name__)
    before = n_open()
    mapped, full = process_module.mapped, [OSError("no memory")]

    def mapped_at_the_second_try(descriptor):
        if full:
            raise full.pop()
        return mapped(descriptor)

    monkeypatch.setattr(process_module, "mapped", mapped_at_the_second_try)
    with pytest.raises(ProjectorFailure):
        Job(b"a").result(process)
    for kind in ("image", "audio"):
        assert len(Asked(process, b"s", kind).result()) == 1
        assert list(Job(b"s", kind).result(process)[0]) == [1.0]
    with pytest.raises(InvalidMedia):
        Asked(process, b"i").result()
    until = time.monotonic() + 30
    while n_open() > before and time.monotonic() < until:
        time.sleep(0.01)  # who has just been told may not have let go of its own yet
    assert n_open() <= before


def test_no_death_leaves_a_descriptor_open(process):
    Asked(process, b"da").result()
    before = n_open()
    for _ in range(2):
        job, layout = encoding(process, b"hh"), Asked(process, b"dd")
        assert isinstance(layout.failure(), ProjectorFailure)
        assert job.ended.wait(30)
        Asked(process, b"da").result()
        del job, layout
    until = time.monotonic() + 30
    while n_open() > before and time.monotonic() < until:
        time.sleep(0.01)  # who has just been told may not have let go of its own yet
    assert n_open() <= before


def medium(letters: bytes) -> Medium:
    file = AnonymousFile.of(letters)
    source = SimpleNamespace(file=file, low_detail=False)
    return Medium(kind="image", digest=sha256(letters).digest(), chunks=(MediaRows(1, 1, True),), source=source)


@pytest.fixture
def encoder(process):
    return Encoder(process, ("image",), widest_span=0, width=1, cache_bytes=1000)


class News:
    """That of one share."""

    def __init__(self, encoder: Encoder, asked: Medium, salt: bytes = b"") -> None:
        self._came = threading.Semaphore(0)
        self.share = encoder.encode(asked, salt, self._came.release)

    def wait(self, come: Callable[[], object]) -> None:
        while not come():
            assert self._came.acquire(timeout=30)

    def error(self):
        self.wait(lambda: self.share.error)
        return self.share.error

    def row(self):
        self.wait(lambda: self.share.rows(0) is not None)
        return list(self.share.rows(0))


def test_what_kills_twice_is_refused_to_its_tenant_alone(encoder):
    """Others are not even told that somebody else has sent it."""
    kills = medium(b"dda")
    for _ in range(2):
        assert isinstance(News(encoder, kills, b"tenant").error(), ProjectorFailure)
    refused = encoder.encode(kills, b"tenant", lambda: None)
    assert isinstance(refused.error, ProjectorFailure)
    assert n_tries(kills.source.file) == 2
    assert News(encoder, kills, b"another").row() == [1.0]


def test_what_found_no_process_has_killed_none(encoder, process, faults):
    waits = medium(b"")
    for letters in (b"h", b"hh"):
        Asked(process, b"a").result()  # it runs again
        kills, behind = News(encoder, medium(letters)), News(encoder, waits)
        faults.append("exit(3)")
        os.kill(process.pid, signal.SIGKILL)
        assert isinstance(kills.error(), ProjectorFailure)
        assert type(behind.error()) is EngineFailure
    assert News(encoder, waits).row() == [1.0]


def test_who_is_told_that_all_is_done_has_all_rows(encoder):
    lacks = medium(b"ea")
    assert str(News(encoder, lacks).error()) == "rows of this medium are missing"
    assert News(encoder, lacks).row() == [1.0]
