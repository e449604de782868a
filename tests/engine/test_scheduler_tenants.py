"""Tenants' classes and bounds in the Scheduler."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.test_scheduler import LENGTHS, enqueue, jobs
from llamafast.engine.scheduler import Scheduler
from llamafast.engine.types import ANYBODY, Tenant


def test_no_request_jumps_into_the_class_of_another_tenant():
    scheduler = Scheduler(n_seq_max=1, n_cells=None)
    first, second, third, fourth = jobs(*[(1, 2)] * 4)
    low, high = Tenant("low", priority=1), Tenant("high", priority=-1)
    enqueue(scheduler, [fourth], 0, low)
    enqueue(scheduler, [third], -1000, low)
    enqueue(scheduler, [second], 1000, high)
    enqueue(scheduler, [first], 999, high)
    assert scheduler.waiting == [first, second, third, fourth]
    assert scheduler.admit() == [first]


def test_who_waits_for_its_tenants_bound_is_passed_by_all_and_then_not_more_often_than_others():
    scheduler = Scheduler(n_seq_max=64, n_cells=1000)
    alice = Tenant("alice", max_running=1)
    running, big, rest = jobs((300, 301), (900, 901), (100, 101))
    enqueue(scheduler, [running, big], tenant=alice)
    enqueue(scheduler, [rest])
    assert scheduler.admit() == [running, rest]

    def pass_it(n):
        for _ in range(n):
            (small,) = jobs((10, 11))
            enqueue(scheduler, [small])
            assert scheduler.admit() == [small]
            scheduler.remove(small)

    pass_it(3 * Scheduler.MAX_PASSED)
    scheduler.remove(running)
    pass_it(Scheduler.MAX_PASSED)
    later = jobs((10, 11))
    enqueue(scheduler, later)
    assert scheduler.admit() == []
    scheduler.remove(rest)
    assert scheduler.admit() == [big, *later]


def test_a_place_that_its_own_tenant_takes_holds_up_nobody_else():
    """The big one is passed for the last time by a sequence that makes its tenant's bound full."""
    scheduler = Scheduler(n_seq_max=64, n_cells=1000)
    alice = Tenant("alice", max_running=1)
    running, big = jobs((500, 501), (600, 601))
    enqueue(scheduler, [running])
    scheduler.admit()
    enqueue(scheduler, [big], tenant=alice)
    for _ in range(Scheduler.MAX_PASSED):
        own, other = jobs((10, 11), (10, 11))
        enqueue(scheduler, [own], tenant=alice)
        enqueue(scheduler, [other])
        assert scheduler.admit() == [own, other]
        scheduler.remove(own)
        scheduler.remove(other)
    enqueue(scheduler, jobs((10, 11)))
    assert scheduler.admit() == []


def test_the_newest_request_tells_how_many_of_its_tenant_run():
    scheduler = Scheduler(n_seq_max=8, n_cells=None)
    queued = jobs(*[(1, 2)] * 6)

    def ask(*asking, max_running):
        for job in asking:
            enqueue(scheduler, [job], tenant=Tenant("alice", max_running=max_running))
        return scheduler.admit()

    assert ask(*queued[:3], max_running=1) == queued[:1]
    assert ask(*queued[3:5], max_running=3) == queued[1:3]
    assert ask(*queued[5:], max_running=None) == queued[3:]


def test_a_tenants_place_is_free_again_whatever_became_of_who_had_it():
    scheduler = Scheduler(n_seq_max=8, n_cells=None)
    first, second, third, fourth = queued = jobs(*[(1, 2)] * 4)
    other = jobs((1, 2))
    for job in queued:
        enqueue(scheduler, [job], tenant=Tenant("alice", max_running=1))
    assert scheduler.admit() == [first]
    assert scheduler.take_running() == [first]
    assert scheduler.admit() == [second]
    enqueue(scheduler, other, -1)
    assert scheduler.admit() == other
    assert scheduler.preempt() is second
    assert scheduler.admit() == [second]
    assert scheduler.remove(second)
    assert scheduler.remove_waiting(lambda job: job is third) == 1
    assert scheduler.admit() == [fourth]


TENANTS = [ANYBODY, Tenant("alice", max_running=1), Tenant("bob", max_running=2, priority=-1), Tenant("carol")]
ASKS = st.lists(st.tuples(LENGTHS, st.sampled_from(TENANTS), st.integers(-1, 1)), min_size=1, max_size=30)


@given(ASKS, st.integers(1, 8), st.sampled_from([256, None]), st.randoms(use_true_random=False))
def test_a_tenants_bound_holds_and_everybody_finishes_or_is_cancelled(asks, n_seq_max, n_cells, random):
    scheduler = Scheduler(n_seq_max=n_seq_max, n_cells=n_cells)
    queued = {}
    for lengths, tenant, priority in asks:
        (job,) = jobs(lengths)
        queued[job] = tenant
        enqueue(scheduler, [job], priority, tenant)
    for _ in range(sum(max(1, job.left) for job in queued) + 60 * len(queued)):
        scheduler.admit()
        running = scheduler.running
        for tenant in TENANTS[1:3]:
            assert sum(queued[job] is tenant for job in running) <= tenant.max_running
        if n_cells is None:
            # somebody waits only where no place is free, or none of its tenant's
            held = {tenant for tenant in TENANTS if sum(queued[job] is tenant for job in running) == tenant.max_running}
            assert len(running) == n_seq_max or {queued[job] for job in scheduler.waiting} <= held
        while n_cells is not None and sum(job.n_tokens for job in scheduler.running) > n_cells:
            assert scheduler.preempt() is not None
        if random.random() < 0.1 and scheduler.waiting:
            unwanted = random.choice(scheduler.waiting)
            assert scheduler.remove_waiting(lambda job, unwanted=unwanted: job is unwanted) == 1
        for job in list(scheduler.running):
            job.n_tokens += 1
            if job.left <= 0:
                scheduler.remove(job)
        if not scheduler.has_work:
            assert (scheduler.n_waiting, scheduler.n_waiting_requests) == (0, 0)
            return
    raise AssertionError("somebody never finished")


@given(
    st.lists(
        st.tuples(st.sampled_from(["held", "other", "end"]), LENGTHS, st.integers(-1, 1)), min_size=1, max_size=60
    ),
    st.integers(3, 8),
)
def test_who_waits_for_its_tenants_bound_delays_nobody_else(events, n_seq_max):
    """Others are admitted as if it had never come."""
    alice = Tenant("alice", max_running=2, priority=-1)
    crowded, empty = (Scheduler(n_seq_max=n_seq_max, n_cells=600) for _ in range(2))
    for scheduler in (crowded, empty):
        enqueue(scheduler, jobs((20, 30), (20, 30)), tenant=alice)
        assert len(scheduler.admit()) == 2
    n_held = 0
    running = []
    for event, lengths, priority in events:
        (job,) = jobs(lengths)
        if event == "held":
            n_held += 1
            enqueue(crowded, [job], priority, alice)
        elif event == "other":
            for scheduler in (crowded, empty):
                enqueue(scheduler, [job], priority, ANYBODY)
        elif running:
            ended = running.pop(0)
            assert crowded.remove(ended)
            assert empty.remove(ended)
        admitted = crowded.admit()
        assert admitted == empty.admit()
        running += admitted
    assert crowded.n_waiting == empty.n_waiting + n_held
