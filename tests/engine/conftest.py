"""What tests of the engine need on a busy machine, and in the address sanitizer's run."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from types import SimpleNamespace

import pytest

from llamafast.chat.grammar import trial
from llamafast.engine import files


@pytest.fixture(autouse=True)
def threads_of_the_disk_run(monkeypatch):
    """Those that give way to all others may not run for many seconds, and tests wait for them."""
    monkeypatch.setattr(files, "NICENESS", 0)


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
