"""How many drafted tokens a step decodes, and what is known of what steps take."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.inside import StepTimes, planned, set_times, spare
from core.test_runner import Rig

CHANCES = st.lists(st.floats(0.015625, 1, width=32), min_size=1, max_size=4).map(
    lambda some: [float(c) for c in sorted(some, reverse=True)]
)
TIMES = st.lists(st.floats(0, 1), min_size=40, max_size=40).map(
    lambda more: [1 + sum(more[: i + 1]) for i in range(len(more))]
)


@given(TIMES, st.lists(CHANCES, min_size=1, max_size=4), st.integers(1, 20), st.integers(0, 12))
def test_no_other_choice_gives_more_useful_rows_a_second(seconds, survival, useful, room):
    def value(taken):
        expected = sum(sum(chances[:n]) for chances, n in zip(survival, taken, strict=True))
        return (max(useful, len(survival)) + expected) / seconds[max(useful, len(survival)) + sum(taken) - 1]

    taken = planned(seconds, survival, max(useful, len(survival)), room, passes=False)
    every = product(*(range(len(chances) + 1) for chances in survival))
    assert sum(taken) <= room
    assert value(taken) == pytest.approx(max(value(other) for other in every if sum(other) <= room))


@given(TIMES, st.lists(CHANCES, min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 16))
def test_where_passes_differ_all_who_draft_have_as_many(seconds, survival, others, room):
    useful = len(survival) + others

    def value(taken):
        k, m = max(taken), sum(map(bool, taken))
        took = seconds[m * (1 + k) - 1] if m else 0
        took += seconds[useful - m - 1] if useful > m else 0
        return (useful + sum(sum(chances[:n]) for chances, n in zip(survival, taken, strict=True))) / took

    taken = planned(seconds, survival, useful, room, passes=True)
    every = [
        tuple(k if i in chosen else 0 for i in range(len(survival)))
        for k in range(1, 5)
        for size in range(1 << len(survival))
        for chosen in [[i for i in range(len(survival)) if size >> i & 1 and len(survival[i]) >= k]]
        if k * len(chosen) <= room
    ] + [(0,) * len(survival)]
    assert sum(taken) <= room
    assert value(taken) == pytest.approx(max(map(value, every)))


def test_rows_come_by_tiles_where_these_cost_the_same():
    """One more row costs most of a step, three more no more than that: a plan that looked at rows one by one would
    take none."""
    seconds = [1.0] + [1.9] * 3 + [2.8] * 4 + [3.7] * 56
    assert planned(seconds, [[0.8, 0.7, 0.6]], 1, 8, passes=False) == [3]
    assert planned(seconds, [[0.8]], 1, 8, passes=False) == [0]


def test_steps_are_as_they_were_measured_and_straight_between():
    times = StepTimes({1: 1.0, 2: 1.5, 8: 4.5, 4: 2.5})
    assert [times.of(rows) for rows in (1, 2, 3, 4, 6, 8, 16, 64, 128)] == pytest.approx(
        [1, 1.5, 2, 2.5, 3.5, 4.5, 8.5, 32.5, 64.5]
    )


def test_a_size_that_was_held_up_when_it_was_measured_says_nothing_of_larger_ones():
    times = StepTimes({1: 1.0, 4: 1.2, 5: 9.0, 8: 2.0, 16: 4.0})
    assert [times.of(rows) for rows in (4, 5, 8, 16)] == pytest.approx([1.2, 2.0, 2.0, 4.0])


def test_rows_behind_many_cells_take_longer_each():
    times = StepTimes({1: 1.0, 4: 1.2})
    times.attend(0.001, 500)
    assert (times.of(1), times.of(4)) == pytest.approx((1.5, 3.2))
    times.observe(4, 3.2)
    assert (times.of(1), times.of(4)) == pytest.approx((1.5, 3.2))


def test_more_rows_never_take_less():
    times = StepTimes({1: 1.0, 2: 0.9, 4: 0.8, 8: 2})
    every = [times.of(rows) for rows in range(1, 200)]
    assert every == sorted(every)
    for rows, seconds in ((8, 0.1), (1, 5.0), (64, 0.2), (3, 9.0)) * 5:
        times.observe(rows, seconds)
        every = [times.of(rows) for rows in range(1, 200)]
        assert every == sorted(every)


def test_a_context_that_grows_stretches_steps_of_all_sizes():
    times = StepTimes({1: 1.0, 2: 1.5, 4: 2.5, 8: 4.5})
    for _ in range(100):
        times.observe(1, 1.5)
    assert [times.of(rows) for rows in (1, 2, 4)] == pytest.approx([1.5, 2.2, 3.7], rel=0.06)


def test_what_one_size_takes_is_learned_beside_another():
    times = StepTimes({1: 1.0, 64: 64.0})
    for _ in range(200):
        times.observe(1, 1.0)
        times.observe(5, 1.5)
    assert (times.of(1), times.of(5)) == pytest.approx((1.0, 1.5), rel=0.1)


def test_a_step_that_was_held_up_changes_little():
    times = StepTimes({1: 1.0, 64: 64.0})
    times.observe(1, 1000.0)
    assert times.of(1) < 1.3


def test_a_row_that_is_hardly_worth_it_is_not_worth_a_new_graph_twice():
    seconds = [1 + 0.1 * k for k in range(64)]
    asked = [[0.3]]
    assert planned(seconds, asked, 1, 8, passes=False) == [1]
    assert planned(seconds, asked, 1, 8, passes=False, change=0.15, last=1) == [0]
    assert planned(seconds, asked, 1, 8, passes=False, change=0.15, last=2) == [1]


def test_nobody_need_be_sure_of_rows_that_a_step_is_hardly_longer_for():
    seconds = [1.0, 1.1, 1.2, 1.3]
    assert [spare(seconds, 1, stretch) for stretch in (1.05, 1.1, 1.25, 1.3)] == [0, 1, 2, 3]
    assert [spare(seconds, useful, 1.2) for useful in (1, 2, 3)] == [2, 2, 2]
    assert [spare(seconds, 1, 1.2, change) for change in (0.05, 0.15)] == [1, 0]


@pytest.mark.parametrize(
    ("n_copies", "n_others", "several"), [(1, 0, 8), (1, 1, 8), (1, 2, None), (2, 2, 8), (2, 3, None)]
)
def test_drafts_make_a_step_long_where_half_of_those_who_wait_have_something_of_it(
    tiny_model, n_copies, n_others, several
):
    """One row more takes a step beyond what may be tried: how many tokens came when somebody had some."""
    rig = Rig(tiny_model("tiny-llama-chain"), drafts={})
    set_times(rig.drafter, [1.3 ** min(k, n_copies + n_others) for k in range(64)])
    source = rig.sequence([40, 50], 1, max_tokens=150, ignore_eos=True, speculative=False)
    rig.run(source)
    for k in range(n_others):
        rig.runner.add(rig.sequence([60 + k], 2 + k, max_tokens=400, ignore_eos=True, speculative=False))
    rig.runner.run(2)
    copies = [rig.sequence(source.tokens(), 20 + k, max_tokens=60, ignore_eos=True) for k in range(n_copies)]
    for copy in copies:
        rig.runner.add(copy)
    came = []
    while not any(copy.finished for copy in copies):
        n = copies[0].n_tokens - len(source.tokens())
        rig.runner.run(1)
        if copies[0].n_drafted:
            came.append(n)
    rig.runner.clear()
    rig.close()
    assert came[:1] == ([] if several is None else [pytest.approx(several, abs=3)])
