"""The engine thread over a fake Runner: nothing ends it, and a failure ends whom it concerns."""

from __future__ import annotations

import logging
import threading
import time
from array import array
from dataclasses import dataclass, field

import pytest

from llamafast._core.step import FINISHED, NO_MEMORY, NO_OUTPUT, NO_ROOM, NOT_TAKEN_BACK, PAUSED, SAVE_DUE
from llamafast.engine import shares as shares_module
from llamafast.engine import worker as worker_module
from llamafast.engine.cache import PrefixCache
from llamafast.engine.kv_transfer import KVTransfer
from llamafast.engine.pace import Pace
from llamafast.engine.scheduler import Arrival, Scheduler
from llamafast.engine.worker import Worker
from llamafast.errors import EngineFailure


@dataclass(eq=False)
class FakeSequence:
    tag: int
    n_tokens: int = 10
    n_max: int = 20
    n_past: int = 0
    n_prompt: int = 10
    n_scored: int = 10
    group: int = 0
    salt: bytes = b""
    checkpoints: tuple = ()
    save_at: int = 0
    finished: bool = False
    private: bool = False
    media: tuple = ()
    awaited: int | None = None
    invocation: None = None

    def tokens(self):
        return array("i", range(self.n_tokens))

    def cut_before(self, n):
        return n

    def cut_behind(self, n):
        return n


def arrival(sequences):
    """The sequences of one request."""
    return Arrival(sequences[0].tag, list(enumerate(sequences)))


@dataclass
class FakeRunner:
    """Finishes everybody in a run, unless a script of statuses or exceptions says otherwise."""

    script: list = field(default_factory=list)
    running: list = field(default_factory=list)
    hold: threading.Event | None = None
    n_free: int = 4
    n_cells: int = 0
    total_cells: int = 1000
    spare: float = 0.0
    in_parts: bool = True
    idled: bool = True

    def add(self, sequence, n_found):
        self.running.append(sequence)

    def shareable(self, sequence):
        return 0, 0

    def halt(self, sequence):
        sequence.finished = True

    def remove(self, sequence):
        self.running.remove(sequence)

    def clear(self):
        self.running.clear()

    def save_due(self):
        return []

    def run(self, max_steps):
        if self.hold is not None:
            self.hold.wait(30)
        step = self.script.pop(0) if self.script else FINISHED
        if isinstance(step, Exception):
            raise step
        return step

    def finished(self):
        for sequence in self.running:
            sequence.finished = True
        return list(self.running)

    def in_last_step(self):
        return self.running[:1]

    def interrupt(self):
        pass

    def since_last_step(self):
        return 123.0

    def counts(self):
        return {}


@pytest.fixture
def failures():
    return []


@pytest.fixture
def runner():
    return FakeRunner()


@pytest.fixture
def worker(runner, failures):
    scheduler = Scheduler(n_seq_max=4, n_cells=None)
    transfer = KVTransfer(runner, PrefixCache(0), Pace())
    worker = Worker(runner, scheduler, transfer, lambda tags, error: failures.append((tags, error)), Pace())
    worker.start()
    yield worker
    worker.close()


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_is_cancelled_ends_once_though_others_finish_before_it_is_released(runner, failures):
    pace = Pace(copy_seconds=-1)  # one is released a round
    transfer = KVTransfer(runner, PrefixCache(0), pace)
    worker = Worker(runner, Scheduler(n_seq_max=4, n_cells=None), transfer, lambda *_: failures.append(1), pace)
    runner.script = [PAUSED]
    first, second = FakeSequence(1), FakeSequence(2)
    worker.enqueue(arrival([first, second]))
    worker._take_orders()
    worker._shares.round(worker)
    worker.cancel([1, 2])
    worker._take_orders()
    for _ in range(3):  # each time somebody has finished
        worker._shares.round(worker)
    counters = worker.counters()
    assert (counters["cancelled"], counters["completed"], counters["failed"]) == (2, 0, 0)
    assert not runner.running
    assert not failures


def test_sequences_come_and_go(worker):
    worker.enqueue(arrival([FakeSequence(tag) for tag in range(10)]))
    worker.wake()
    until(lambda: worker.counters()["completed"] == 10)
    counters = worker.counters()
    assert (counters["submitted"], counters["admitted"], counters["running"], counters["waiting"]) == (10, 10, 0, 0)


@pytest.mark.parametrize(("ago", "stalled"), [(400, 123), (7, 7)])
def test_a_step_that_comes_further_does_not_stand_still(worker, monkeypatch, ago, stalled):
    """By its nodes: one of a giant that is read from a disk takes minutes."""
    now = time.monotonic()
    monkeypatch.setattr(worker_module, "last_progress", lambda: now - ago)
    worker._busy_since = now - 500
    assert stalled <= worker.stalled() < stalled + 60


def test_an_exception_fails_who_ran_and_the_thread_goes_on(worker, runner, failures, caplog):
    with caplog.at_level(logging.CRITICAL):
        runner.script = [RuntimeError("nobody foresaw this")]
        worker.enqueue(arrival([FakeSequence(1), FakeSequence(2)]))
        worker.wake()
        until(lambda: failures)
    assert failures[0][0] == [1, 2]
    assert isinstance(failures[0][1], EngineFailure)
    worker.enqueue(arrival([FakeSequence(3)]))
    worker.wake()
    until(lambda: worker.counters()["completed"] == 1)


@pytest.mark.parametrize("code", [2, -1, -3])
def test_a_failed_decode_fails_only_who_had_rows_in_it(worker, runner, failures, caplog, code):
    with caplog.at_level(logging.CRITICAL):
        runner.script = [code]
        worker.enqueue(arrival([FakeSequence(1), FakeSequence(2)]))
        worker.wake()
        until(lambda: worker.counters()["completed"] == 1)
    assert [tags for tags, _ in failures] == [[1]]
    assert str(code) in failures[0][1].message


@pytest.mark.parametrize(
    ("code", "told"),
    [(NO_MEMORY, "the server ran out of memory"), (NO_OUTPUT, "gave nothing"), (NOT_TAKEN_BACK, "did not forget")],
)
def test_a_step_that_fails_otherwise_is_not_told_as_a_failed_decode(worker, runner, failures, caplog, code, told):
    runner.script = [code]
    worker.enqueue(arrival([FakeSequence(1)]))
    worker.wake()
    until(lambda: failures)
    assert told in failures[0][1].message
    assert "llama_decode" not in failures[0][1].message
    assert told in caplog.text


def test_no_room_makes_the_youngest_wait(worker, runner, failures):
    runner.script = [NO_ROOM, FINISHED]
    worker.enqueue(arrival([FakeSequence(1), FakeSequence(2)]))
    worker.wake()
    until(lambda: worker.counters()["completed"] == 2)
    assert worker.counters()["preempted"] == 1
    assert worker.counters()["admitted"] == 3
    assert failures == []


def test_no_room_for_one_alone_is_its_error(worker, runner, failures):
    runner.script = [NO_ROOM]
    worker.enqueue(arrival([FakeSequence(1)]))
    worker.wake()
    until(lambda: failures)
    assert failures[0][0] == [1]


def test_a_prefix_that_cannot_be_kept_fails_nobody(runner, failures, caplog):
    class BrokenCache(PrefixCache):
        def find(self, tokens, salt, more_than, invoked=None):
            raise MemoryError

        def unsaved(self, tokens, salt, invoked=None):
            raise MemoryError

    transfer = KVTransfer(runner, BrokenCache(10), Pace())
    worker = Worker(runner, Scheduler(n_seq_max=4, n_cells=None), transfer, lambda *_: failures.append(1), Pace())
    worker.start()
    with caplog.at_level(logging.CRITICAL):
        worker.enqueue(arrival([FakeSequence(1)]))
        worker.wake()
        until(lambda: worker.counters()["completed"] == 1)
    assert failures == runner.running == []
    counters = worker.counters()
    assert (counters["lookup_failures"], counters["save_failures"], counters["restore_failures"]) == (1, 1, 0)
    worker.close()


def test_the_thread_starts_afresh_however_often_that_fails(worker, runner, failures, monkeypatch, caplog):
    """Also where starting afresh fails itself, and the event loop cannot be told: everybody is told in the end."""
    monkeypatch.setattr(worker_module, "RESET_SECONDS", 0.001)
    clears = iter([MemoryError("no room"), None])
    clear, tell = runner.clear, worker._on_failure

    def clear_at_the_second_try():
        error = next(clears, None)
        if error is not None:
            raise error
        clear()

    told = iter([RuntimeError("the loop is closed")])

    def tell_at_the_second_try(tags, error):
        problem = next(told, None)
        if problem is not None:
            raise problem
        tell(tags, error)

    runner.clear, worker._on_failure = clear_at_the_second_try, tell_at_the_second_try
    runner.script = [RuntimeError("a bug")]
    with caplog.at_level(logging.CRITICAL):
        worker.enqueue(arrival([FakeSequence(1), FakeSequence(2)]))
        worker.wake()
        until(lambda: failures)
    assert [tags for tags, _ in failures] == [[1, 2]]
    worker.enqueue(arrival([FakeSequence(3)]))
    worker.wake()
    until(lambda: worker.counters()["completed"] == 1)
    assert worker.counters()["failed"] == 2


def test_arrivals_that_cannot_be_queued_are_told(worker, failures, monkeypatch, caplog):
    enqueue = worker.scheduler.enqueue
    errors = iter([MemoryError("no room")])

    def enqueue_at_the_second_try(arrived):
        error = next(errors, None)
        if error is not None:
            raise error
        enqueue(arrived)

    monkeypatch.setattr(worker.scheduler, "enqueue", enqueue_at_the_second_try)
    with caplog.at_level(logging.CRITICAL):
        worker.enqueue(arrival([FakeSequence(1), FakeSequence(2)]))
        worker.wake()
        until(lambda: failures)
    assert failures[0][0] == [1, 2]
    worker.enqueue(arrival([FakeSequence(3)]))
    worker.wake()
    until(lambda: worker.counters()["completed"] == 1)


def test_cancelling_what_runs_and_what_waits(worker, runner):
    runner.hold = threading.Event()
    worker.enqueue(arrival([FakeSequence(tag) for tag in range(6)]))
    worker.wake()
    until(lambda: worker.counters()["running"] == 4)
    runner.script = [PAUSED]
    worker.cancel([0, 5])
    worker.wake()
    runner.hold.set()
    until(lambda: worker.counters()["completed"] == 4)
    assert worker.counters()["cancelled"] == 2


def test_it_is_stalled_only_while_work_waits(worker, runner):
    assert worker.stalled() == 0
    runner.hold = threading.Event()
    worker.enqueue(arrival([FakeSequence(1)]))
    worker.wake()
    until(lambda: worker.stalled() > 0.01)
    runner.hold.set()
    until(lambda: worker.stalled() == 0)


class FakeEmbeddings:
    """Always has work; a step takes what it is given."""

    n_waiting = 0
    has_work = True

    def __init__(self, clock):
        self.clock, self.seconds = clock, 0.0

    def step(self, seconds):
        self.clock.now += seconds
        self.seconds += seconds


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


class ClockedRunner(FakeRunner):
    """Never finishes anybody; a step takes as long as it is told."""

    def __init__(self, clock, step):
        super().__init__()
        self.clock, self.step, self.seconds, self.asked = clock, step, 0.0, []
        self.status = PAUSED

    def run(self, max_steps):
        self.asked.append(max_steps)
        self.clock.now += self.step
        self.seconds += self.step
        self.spare = max(self.step, 0.05 - self.step)
        return self.status


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr(shares_module, "time", clock)
    return clock


@pytest.mark.parametrize("step", [0.001, 0.035, 0.3])
def test_embeddings_share_the_thread_with_generation(clock, step):
    """How, test_shares.py tells."""
    runner, embeddings = ClockedRunner(clock, step), FakeEmbeddings(clock)
    transfer = KVTransfer(runner, PrefixCache(0), Pace())
    worker = Worker(runner, Scheduler(n_seq_max=4, n_cells=None), transfer, lambda *_: None, Pace(), embeddings)
    worker.scheduler.enqueue(arrival([FakeSequence(1)]))
    while clock.now < 100:
        worker._shares.round(worker)
    assert 0.95 < runner.seconds / embeddings.seconds < 1.05
    assert set(runner.asked) == {1}


def test_copies_are_a_part_of_the_pause(clock, monkeypatch):
    runner, embeddings = ClockedRunner(clock, 0.06), FakeEmbeddings(clock)
    transfer = KVTransfer(runner, PrefixCache(0), Pace())
    worker = Worker(runner, Scheduler(n_seq_max=4, n_cells=None), transfer, lambda *_: None, Pace(), embeddings)
    worker.scheduler.enqueue(arrival([FakeSequence(1)]))
    monkeypatch.setattr(transfer, "restore", lambda deadline: setattr(clock, "now", clock.now + 0.01))
    monkeypatch.setattr(transfer, "save_due", lambda: setattr(clock, "now", clock.now + 0.005))
    monkeypatch.setattr(runner, "status", SAVE_DUE)
    while clock.now < 100:
        worker._shares.round(worker)
    # of 0.06 a step
    assert worker.spare == pytest.approx(0.045)
    assert embeddings.seconds / runner.seconds == pytest.approx(0.75, abs=0.01)


def test_who_keeps_a_step_from_being_taken_leaves_no_time_for_more_copies(clock, monkeypatch):
    """Orders come one after the other while states are copied, and each interrupts the run that follows."""
    runner, embeddings = ClockedRunner(clock, 0.0), FakeEmbeddings(clock)
    runner.idled = False
    transfer = KVTransfer(runner, PrefixCache(0), Pace())
    worker = Worker(runner, Scheduler(n_seq_max=4, n_cells=None), transfer, lambda *_: None, Pace(), embeddings)
    worker.scheduler.enqueue(arrival([FakeSequence(1)]))
    monkeypatch.setattr(transfer, "restore", lambda deadline: setattr(clock, "now", clock.now + 0.004))
    for _ in range(8):
        worker._shares.round(worker)
    # two parts fit, and nobody computes in a pause that no step has left
    assert clock.now == pytest.approx(0.008)
    monkeypatch.setattr(runner, "since_last_step", lambda: 0.0)
    worker._shares.round(worker)
    before = clock.now
    worker._shares.round(worker)
    assert clock.now > before
