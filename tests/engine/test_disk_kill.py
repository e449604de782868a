"""Processes that are killed while they write to the disk tier lose nothing they had told of, and leave no rubbish."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import disk_writer
from support.driven_store import driven, id_of, order_of

ROOT = Path(__file__).parents[2]
KILLS, MAX_BYTES = 200, 400 * 10**6
AHEAD = 1000  # no process writes so many


def killed_while_writing(folder, first, seconds):
    """Numbers that a process had told of when it was killed, so long after it had begun to write."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, disk_writer.__file__, str(folder), str(first), str(MAX_BYTES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        threading.Event().wait(seconds)
        process.kill()
        told = process.stdout.read().split()
    assert b"full" not in told
    return [int(number) for number in told]


def expected(number, told):
    """What was written under a number."""
    orders = []
    for each in range(number - number % 5, number + 1):
        if each in told:
            continues = orders[-1] if orders and each % 5 else None
            orders.append(order_of(each, disk_writer.N_BYTES + each % 7 * 5000, base=continues))
    return orders[-1]


@pytest.mark.heavy
def test_whoever_is_killed_while_it_writes_loses_nothing_it_had_told_of(tmp_path):
    chance = random.Random(1)
    told = []
    for kill in range(KILLS):
        told += killed_while_writing(tmp_path, kill * AHEAD, chance.uniform(0.001, 0.05))
    assert len(told) > KILLS
    with driven(tmp_path, max_bytes=MAX_BYTES) as one:
        there = one.entries()
        assert {id_of(number) for number in told} <= there.keys()
        # what was renamed, but not told of: one a process
        assert len(there) <= len(told) + KILLS
        numbers = {int(id, 16) for id in there}
        for number in sorted(numbers):
            head, tokens, _ = there[id_of(number)]
            order = expected(number, numbers)
            assert (head.base, head.start, head.depth, tokens) == (order.base, order.start, order.depth, order.tokens)
            assert one.read(head) == order.state
        assert one.store.counts["disk_corrupt"] == 0
        assert all(name.endswith(".safetensors") for name in one.names)
        taken = sum(512 * path.stat().st_blocks for path in tmp_path.rglob("*.safetensors"))
        assert taken == one.store.used_bytes <= MAX_BYTES
