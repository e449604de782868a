"""What tells a process that takes long from one that hangs."""

from __future__ import annotations

import time

import pytest

from core.test_runner import Rig
from llamafast._core.model import Model
from llamafast._core.progress import last_progress


def test_weights_that_are_read_are_progress(tiny_model):
    before = last_progress()
    Model(str(tiny_model("tiny-llama")))
    assert last_progress() > before
    # also for whoever shows it
    before = last_progress()
    Model(str(tiny_model("tiny-llama")), on_progress=lambda fraction: None)
    assert last_progress() > before


@pytest.mark.parametrize("bare", [None, True])
def test_a_step_comes_further_before_it_ends(tiny_model, bare):
    rig = Rig(tiny_model("tiny-llama"), bare=bare)
    began = time.monotonic()
    rig.run(rig.sequence([33, 34, 35], max_tokens=1))
    ended = time.monotonic() - rig.runner.since_last_step()
    assert began < last_progress() < ended
    rig.close()
