"""The engine thread over a fake Runner: nothing ends it, and a failure ends whom it concerns."""

from __future__ import annotations

import logging
import threading
import time
from array import array
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from llamafast._core.step import FINISHED, NO_ROOM, PAUSED
from llamafast.engine import embeddings as embeddings_module
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
    salt: bytes = b""
    checkpoints: tuple = ()
    save_at: int = 0
    finished: bool = False

    def tokens(self):
        return array("i", range(self.n_tokens))


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

    def add(self, sequence, n_found, apart):
        assert not apart
        self.running.append(sequence)

    def shareable(self, sequence):
        return 0, 0

    def followers(self, sequence):
        return []

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
            self.hold.wait(10)
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
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_who_is_cancelled_while_its_prompt_arrives_ends_once(runner, failures, monkeypatch):
    pace = Pace(copy_seconds=-1)  # one is released a round
    transfer = KVTransfer(runner, PrefixCache(0), pace)
    worker = Worker(runner, Scheduler(n_seq_max=4, n_cells=None), transfer, lambda *_: failures.append(1), pace)
    runner.script = [PAUSED] * 9
    first, second = FakeSequence(1), FakeSequence(2)
    worker.enqueue(arrival([first, second]))
    worker._take_orders()
    worker._round()
    worker.cancel([1, 2])
    worker._take_orders()
    monkeypatch.setattr(transfer, "arrive", lambda: [second] if second in runner.running else [])
    for _ in range(3):
        worker._round()
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
        def find(self, tokens, salt, more_than):
            raise MemoryError

        def unsaved(self, tokens, salt):
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
    """Has work unless ``works`` says otherwise. A step takes what it is given, with one long input more, and never
    more than a full batch does."""

    n_waiting = 0

    def __init__(self, clock, slowness=1.0, full_batch=10.0, works=lambda: True):
        self.clock, self.slowness, self.full_batch, self.works = clock, slowness, full_batch, works
        self.seconds = 0.0
        self.longest = 0.0

    @property
    def has_work(self):
        return self.works()

    def step(self, seconds):
        took = min(seconds, self.full_batch) * self.slowness
        self.clock.now += took
        self.seconds += took
        self.longest = max(self.longest, took)


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


class ClockedRunner(FakeRunner):
    """Never finishes anybody; a step takes as long as it is told."""

    def __init__(self, clock, step):
        super().__init__()
        self.clock, self.step, self.seconds = clock, step, 0.0

    def run(self, max_steps):
        self.clock.now += self.step
        self.seconds += self.step
        self.spare = max(self.step, 0.05 - self.step)
        return PAUSED


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(worker_module, "time", clock)
    monkeypatch.setattr(embeddings_module, "time", clock)
    return clock


def sharing(runner, embeddings):
    """A worker without a thread whose Runner has a sequence."""
    transfer = KVTransfer(runner, PrefixCache(0), Pace())
    worker = Worker(runner, Scheduler(n_seq_max=4, n_cells=None), transfer, lambda *_: None, Pace(), embeddings)
    worker.scheduler.enqueue(arrival([FakeSequence(1)]))
    return worker


@pytest.mark.parametrize("step", [0.001, 0.035, 0.3])
@pytest.mark.parametrize(("slowness", "full_batch"), [(1.0, 10.0), (7.0, 10.0), (1.0, 0.1), (1.0, 0.004)])
def test_generation_and_embeddings_get_equal_time(clock, step, slowness, full_batch):
    runner, embeddings = ClockedRunner(clock, step), FakeEmbeddings(clock, slowness, full_batch)
    worker = sharing(runner, embeddings)
    while clock.now < 100:
        worker._round()
    assert 0.95 < runner.seconds / embeddings.seconds < 1.05
    assert embeddings.longest <= max(0.05, step) * slowness + 1e-9


def test_generation_that_comes_is_not_held_up_by_embeddings_that_wait(clock):
    runner, embeddings = ClockedRunner(clock, 0.3), FakeEmbeddings(clock)
    sharing(runner, embeddings)._round()
    assert runner.seconds == 0.3
    assert embeddings.seconds == pytest.approx(0.3)


def test_embeddings_that_come_have_saved_up_no_time(clock):
    runner = ClockedRunner(clock, 30.0)
    embeddings = FakeEmbeddings(clock, works=lambda: clock.now > 0)
    worker = sharing(runner, embeddings)
    worker._round()
    assert embeddings.seconds == pytest.approx(0.1)


def test_embeddings_take_no_more_than_a_step_has_to_spare(clock):
    """As much as generation had in the long run, but in pieces; a prompt that is computed apart gets half of them."""
    runner, embeddings = ClockedRunner(clock, 0.03), FakeEmbeddings(clock, full_batch=0.004)
    worker = sharing(runner, embeddings)
    for apart, most in ((False, 0.03), (True, 0.02)):
        worker.transfer = SimpleNamespace(**dict.fromkeys(("release", "restore", "start")), computes_apart=apart)
        longest = 0.0
        for _ in range(200):
            runner.run(1)
            before = clock.now
            worker._embed(worker._turns)
            worker._turns.generated(0.03, shared=True)
            longest = max(longest, clock.now - before)
            assert runner.spare <= 0.03
        assert 0.01 < longest <= most + 0.004


def test_a_prompt_that_is_computed_apart_gets_its_half_however_little_there_is(clock):
    """Where short prompts take most of the gap; embeddings wait until what they may take is enough for a step."""
    runner, embeddings = ClockedRunner(clock, 0.068), FakeEmbeddings(clock)
    worker = sharing(runner, embeddings)
    worker.transfer = SimpleNamespace(computes_apart=True)
    for _ in range(100):
        runner.run(1)
        runner.spare = 0.007
        worker._turns.generated(0.068, shared=True)
        worker._embed(worker._turns)
        assert runner.spare >= 0.0035 - 1e-9
    assert embeddings.seconds == pytest.approx(100 * 0.0035, rel=0.1)
    assert embeddings.longest <= 0.025


def test_a_pause_of_the_embeddings_does_not_cancel_what_they_took(clock):
    runner = ClockedRunner(clock, 0.005)
    embeddings = FakeEmbeddings(clock, works=lambda: len(calls) % 3 != 1)
    calls = []
    worker = sharing(runner, embeddings)
    while clock.now < 100:
        calls.append(None)
        worker._round()
    assert 0.95 < runner.seconds / embeddings.seconds < 1.3
