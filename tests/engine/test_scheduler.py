"""Admission and preemption, without a model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from llamafast.engine.scheduler import Arrival, Scheduler
from llamafast.engine.types import ANYBODY


@dataclass(eq=False)
class Job:
    n_tokens: int
    n_max: int
    group: int = 0

    @property
    def left(self) -> int:
        return self.n_max - self.n_tokens


requests = count()


def enqueue(scheduler, sequences, priority=0, tenant=ANYBODY):
    """The sequences of one more request."""
    scheduler.enqueue(Arrival(next(requests), list(enumerate(sequences)), (tenant.priority, priority), tenant))


def jobs(*lengths):
    return [Job(n_tokens, n_max) for n_tokens, n_max in lengths]


def test_first_come_first_served_while_there_is_room():
    scheduler = Scheduler(n_seq_max=8, n_cells=1000)
    first, second, third = queued = jobs((400, 420), (500, 520), (100, 110))
    for job in queued:
        enqueue(scheduler, [job])
    assert scheduler.admit() == [first, second]
    assert scheduler.remove(first)
    assert scheduler.admit() == [third]


def test_the_bet_on_short_answers_is_bounded():
    scheduler = Scheduler(n_seq_max=64, n_cells=4096)
    for job in jobs(*[(10, 4096)] * 64):
        enqueue(scheduler, [job])
    assert len(scheduler.admit()) == 4096 // (10 + Scheduler.LOOKAHEAD)


def test_the_youngest_gives_way_and_comes_back_first():
    scheduler = Scheduler(n_seq_max=8, n_cells=1000)
    first, second, third = queued = jobs((300, 350), (300, 350), (900, 950))
    for job in queued:
        enqueue(scheduler, [job])
    assert scheduler.admit() == [first, second]
    assert scheduler.preempt() is second
    assert scheduler.preempt() is None
    assert scheduler.waiting == [second, third]


def test_lower_priority_values_run_first_and_give_way_last():
    scheduler = Scheduler(n_seq_max=2, n_cells=None)
    low, normal, high = jobs((10, 20), (10, 20), (10, 20))
    enqueue(scheduler, [low], 5)
    enqueue(scheduler, [normal])
    enqueue(scheduler, [high], -1)
    assert scheduler.admit() == [high, normal]
    assert scheduler.preempt() is normal
    assert scheduler.waiting == [normal, low]


def test_a_small_one_passes_a_big_one_that_has_no_room_yet():
    scheduler = Scheduler(n_seq_max=64, n_cells=1000)
    running, big, small = jobs((700, 701), (600, 601), (100, 101))
    for job in (running, big, small):
        enqueue(scheduler, [job])
    assert scheduler.admit() == [running, small]


def test_nobody_is_passed_for_ever():
    """A stream of small ones never leaves room for the big one: after MAX_PASSED of them they wait behind it."""
    scheduler = Scheduler(n_seq_max=64, n_cells=1000)
    running, big = jobs((500, 501), (900, 901))
    enqueue(scheduler, [running])
    enqueue(scheduler, [big])
    scheduler.admit()
    passed, last = 0, running
    for _ in range(3 * Scheduler.MAX_PASSED):
        (small,) = jobs((400, 401))
        enqueue(scheduler, [small])
        admitted = scheduler.admit()
        if big in admitted:
            break
        passed += len(admitted)
        scheduler.remove(last)
        last = admitted[0] if admitted else last
    assert passed == Scheduler.MAX_PASSED
    assert big in scheduler.running


def test_who_was_passed_often_enough_holds_up_nobody_once_admitted():
    scheduler = Scheduler(n_seq_max=64, n_cells=1000)
    running, big = jobs((500, 501), (600, 601))
    enqueue(scheduler, [running])
    enqueue(scheduler, [big])
    scheduler.admit()
    for _ in range(Scheduler.MAX_PASSED):
        (small,) = jobs((10, 11))
        enqueue(scheduler, [small])
        assert scheduler.admit() == [small]
        scheduler.remove(small)
    later = jobs((10, 11), (10, 11))
    for job in later:
        enqueue(scheduler, [job])
    assert scheduler.admit() == []
    scheduler.remove(running)
    assert scheduler.admit() == [big, *later]


def test_without_shared_cells_only_ids_count():
    scheduler = Scheduler(n_seq_max=2, n_cells=None)
    queued = jobs((10**6, 10**6), (10**6, 10**6), (1, 2))
    for job in queued:
        enqueue(scheduler, [job])
    assert scheduler.admit() == queued[:2]


LENGTHS = st.tuples(st.integers(1, 200), st.integers(1, 200)).map(lambda pair: (pair[0], min(256, sum(pair))))


@given(st.lists(LENGTHS.filter(lambda pair: pair[0] < pair[1]), min_size=1, max_size=30), st.integers(1, 8))
def test_everybody_finishes_in_a_small_memory(lengths, n_seq_max):
    """A memory of 256 cells, one token each a step, preemption when it is full: the law of liveness."""
    n_cells = 256
    scheduler = Scheduler(n_seq_max=n_seq_max, n_cells=n_cells)
    queued = jobs(*lengths)
    for job in queued:
        enqueue(scheduler, [job])
    for _ in range(sum(job.left for job in queued) + 40 * len(queued)):
        scheduler.admit()
        assert len(scheduler.running) <= n_seq_max
        while sum(job.n_tokens for job in scheduler.running) > n_cells:
            assert scheduler.preempt() is not None
        for job in list(scheduler.running):
            job.n_tokens += 1
            if job.left == 0:
                scheduler.remove(job)
        if not scheduler.has_work:
            return
    raise AssertionError("somebody never finished")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_a_request_for_many_choices_lets_others_pass_and_nobody_waits_for_ever(sizes):
    """A request's first choice is passed by nobody, and choice k by at most the k requests that came next."""
    scheduler = Scheduler(n_seq_max=1, n_cells=None)
    asked = [jobs(*[(1, 2)] * size) for size in sizes]
    for request in asked:
        enqueue(scheduler, request)
    assert scheduler.n_waiting_requests == len(sizes)
    order = []
    while scheduler.has_work:
        (job,) = scheduler.admit()
        scheduler.remove(job)
        order.append(job)
    assert scheduler.n_waiting_requests == 0
    places = {job: place for place, job in enumerate(order)}
    for number, request in enumerate(asked):
        for choice, job in enumerate(request):
            for later in asked[number + 1 + choice :]:
                assert places[job] < min(places[other] for other in later)


def test_all_who_are_unwanted_leave_the_queue_at_once():
    scheduler = Scheduler(n_seq_max=1, n_cells=None)
    first, second = jobs((1, 2), (1, 2), (1, 2)), jobs((3, 4))
    enqueue(scheduler, first)
    enqueue(scheduler, second)
    assert scheduler.remove_waiting(lambda job: job.n_tokens == 1) == 3
    assert (scheduler.waiting, scheduler.n_waiting_requests) == (second, 1)


def test_choices_that_are_made_later_count_for_the_same_request():
    scheduler = Scheduler(n_seq_max=1, n_cells=None)
    first, second, third, other = jobs((1, 2), (1, 2), (1, 2), (3, 4))
    scheduler.enqueue(Arrival(1, [(0, first), (1, second)]))
    scheduler.enqueue(Arrival(2, [(0, other)]))
    scheduler.enqueue(Arrival(1, [(2, third)]))
    assert scheduler.waiting == [first, second, other, third]
    assert (scheduler.n_waiting, scheduler.n_waiting_requests) == (4, 2)
