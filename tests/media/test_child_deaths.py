"""The process that encodes may be ended at any moment: who loses something by it, who does not, and who is told."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.encoding import Job, begin, kill, laid_out
from support.media_prompts import png, wav

from llamafast.errors import EngineFailure, EngineUnavailable
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.process import MediaProcess


def test_a_cpu_limit_ends_what_takes_too_long():
    process = MediaProcess(begin(encode_max_seconds=0.002))
    process.start()
    with pytest.raises(EngineFailure, match="the projector failed on this audio"):
        Job(wav(120, 440), "audio").result(process)
    assert laid_out(process, png(96, 80, 1))
    assert process.counts["media_restarts"] == 1
    process.close()


def test_a_death_fails_what_was_encoded_and_nothing_else(process):
    """The process is killed again and again, with jobs behind each other."""
    jobs = [Job(wav(30 + k, 300), "audio") for k in range(8)]
    for job in jobs:
        process.encode(job)
    killed = 0
    while not all(job.ended.is_set() for job in jobs):
        if killed < 3:
            killed += kill(process)
        time.sleep(0.01)
    failed = [job for job in jobs if job.error is not None]
    assert len(failed) <= 3
    assert all(isinstance(job.error, EngineFailure) for job in failed)
    assert len(laid_out(process, png(96, 80, 1))) == 3


def test_layouts_outlive_a_death(process):
    os.kill(process.pid, signal.SIGSTOP)
    waiting = [process.lay_out(AnonymousFile.of(png(96, 80, seed)), "image", False) for seed in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    assert all(len(one.result(30)) == 3 for one in waiting)


def test_close_tells_whoever_waits(process):
    os.kill(process.pid, signal.SIGSTOP)
    job = Job(png(96, 80, 1))
    process.encode(job)
    behind = Job(png(96, 80, 2))
    process.encode(behind)
    layout = process.lay_out(AnonymousFile.of(png(96, 80, 1)), "image", False)
    process.close()
    assert job.ended.wait(30)
    assert behind.ended.wait(30)
    for error in (job.error, behind.error, layout.exception(30)):
        assert isinstance(error, EngineUnavailable)


def test_it_ends_with_its_server():
    """Also while it is stopped."""
    process = MediaProcess(begin())
    process.start()
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)
    process._wire.close()
    process._closing = True
    process.close()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("it still runs")
