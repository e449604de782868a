"""Turns of an encoder that shares the CPUs that compute: they end with news, whenever these have come."""

from __future__ import annotations

import threading
import time

import pytest
from support.fake_encoder import FakeEncoder

from engine.test_worker import FakeRunner
from llamafast.engine.cache import PrefixCache
from llamafast.engine.encoder_turns import EncoderTurns
from llamafast.engine.kv_transfer import KVTransfer
from llamafast.engine.pace import Pace
from llamafast.engine.scheduler import Scheduler
from llamafast.engine.worker import Worker

# no turn of these tests lasts for so long
FOR_LONG, SOON = 30.0, 10.0


class BusyEncoder(FakeEncoder):
    """``runs`` says whether it may, ``turns`` how often it could."""

    shares_cpus = busy = True

    def __init__(self):
        super().__init__()
        self.runs, self.turns = False, 0
        self.resumed = threading.Event()

    def resume(self):
        self.runs = True
        self.turns += 1
        self.resumed.set()

    def pause(self):
        self.runs = False


@pytest.fixture
def encoder():
    return BusyEncoder()


@pytest.fixture
def turns(encoder):
    return EncoderTurns(encoder)


def seconds_of(turn, *args):
    start = time.monotonic()
    turn(*args)
    return time.monotonic() - start


def test_news_before_a_turn_end_it(turns, encoder):
    """They came behind the orders that were taken, and nobody has looked at them."""
    turns.begin()
    turns.wake()
    assert seconds_of(turns.step, FOR_LONG) < SOON
    assert (encoder.turns, encoder.runs) == (1, False)
    assert seconds_of(turns.step, FOR_LONG) < SOON  # nor has anybody since


def test_news_in_a_turn_end_it(turns, encoder):
    turns.begin()
    turn = threading.Thread(target=turns.step, args=(FOR_LONG,))
    turn.start()
    assert encoder.resumed.wait(SOON)
    turns.wake()
    turn.join(SOON)
    assert not turn.is_alive()
    assert not encoder.runs


def test_news_that_were_looked_at_end_no_turn(turns, encoder):
    turns.wake()
    turns.begin()
    assert seconds_of(turns.step, 0.02) >= 0.02
    assert encoder.turns == 1


def test_who_has_nothing_to_do_has_no_turn(turns, encoder):
    encoder.busy = False
    assert not turns.has_work
    turns.begin()
    assert seconds_of(turns.step, FOR_LONG) < SOON


def test_an_order_that_comes_behind_those_taken_ends_the_turn(encoder):
    pace = Pace(alone_seconds=FOR_LONG)
    runner = FakeRunner()
    transfer = KVTransfer(runner, PrefixCache(0), pace)
    scheduler = Scheduler(n_seq_max=4, n_cells=None)
    worker = Worker(runner, scheduler, transfer, lambda *_: None, pace, encoder=encoder)
    assert encoder.on_busy == worker.wake
    worker._take_orders()
    worker.wake()
    assert seconds_of(worker._shares.round, worker) < SOON
    assert encoder.turns == 1


def test_orders_that_were_taken_end_no_turn(encoder):
    pace = Pace(alone_seconds=0.02)
    runner = FakeRunner()
    transfer = KVTransfer(runner, PrefixCache(0), pace)
    scheduler = Scheduler(n_seq_max=4, n_cells=None)
    worker = Worker(runner, scheduler, transfer, lambda *_: None, pace, encoder=encoder)
    worker.wake()
    worker._take_orders()
    assert seconds_of(worker._shares.round, worker) >= 0.02
