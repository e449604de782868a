"""What tests of the engine need on a busy machine, and in the address sanitizer's run."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from types import SimpleNamespace

import pytest
from support.engines import config

from llamafast.chat.grammar import trial
from llamafast.engine import disk_places, disk_tier, disk_traffic, disk_writer, files
from llamafast.engine.load import load_engine


class Clock(SimpleNamespace):
    """Goes on only when somebody sleeps."""

    now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """What the disk tier reads, and a test may put on."""
    one = Clock()
    for module in (disk_tier, disk_traffic):
        monkeypatch.setattr(module, "time", one)
    return one


@pytest.fixture
def little_ram(monkeypatch):
    """A budget of RAM is what the test says, however little."""
    monkeypatch.setattr(disk_places, "LEAST_RAM", 0)


@pytest.fixture
def patience(monkeypatch):
    """Nothing is computed because a busy machine reads it late."""
    monkeypatch.setattr(disk_traffic, "LEAST_PATIENCE", 60.0)


@pytest.fixture(autouse=True)
def threads_of_the_disk_run(monkeypatch):
    """Those that give way to all others may not run for many seconds, and tests wait for them. None of them hangs
    unless a test says so."""
    monkeypatch.setattr(files, "NICENESS", 0)
    monkeypatch.setattr(disk_writer, "HANGS", 30.0)


@pytest.fixture(autouse=True, scope="session")
def trials_without_sanitizer():
    """The processes that try grammars load nothing of the core, and their address space is limited: the sanitizer would
    reserve terabytes of it."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    start = partial(subprocess.Popen, env=environment)
    with pytest.MonkeyPatch.context() as patch:
        if "libasan" in os.environ.get("LD_PRELOAD", ""):
            patch.setattr(trial, "subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
        yield


@pytest.fixture
async def engine(tiny_model):
    """One that runs, of ``tiny-llama``."""
    engine = load_engine(config(tiny_model("tiny-llama")), tiny_model("tiny-llama"))
    engine.start()
    yield engine
    await engine.close()
