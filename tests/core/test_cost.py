"""The line fitted to step times."""

from __future__ import annotations

import pytest

from core.inside import StepCost
from llamafast.engine.pace import Pace

EXCESS = (Pace().excess_weight, Pace().excess_most)


def test_a_line_is_found():
    cost = StepCost(0.98)
    for rows in (1, 16, 64, 8, 200):
        cost.add(rows, 0.010 + 0.002 * rows)
    assert cost.fit() == pytest.approx((0.010, 0.002))


def test_steps_of_one_size_put_all_time_on_the_rows():
    cost = StepCost(0.98)
    for _ in range(10):
        cost.add(16, 0.080)
    assert cost.fit() == pytest.approx((0, 0.005))


def test_the_past_fades():
    cost = StepCost(0.98)
    for seconds_a_row in (1.0, 0.001):
        for i in range(600):
            cost.add(1 + i % 50, 0.01 + seconds_a_row * (1 + i % 50))
    assert cost.fit() == pytest.approx((0.01, 0.001), rel=0.05)


def test_a_larger_step_that_took_less_time_is_no_slope():
    cost = StepCost(0.98)
    cost.add(1, 0.5)
    cost.add(100, 0.1)
    fixed, per_row = cost.fit()
    assert fixed >= 0
    assert per_row > 0


def rows_for(cost: StepCost, seconds: float) -> int:
    fixed, per_row = cost.fit()
    return int((seconds / cost.excess - fixed) / per_row)


def test_a_prompts_rows_that_cost_more_and_more_are_foreseen():
    """As attention makes them: twice as much at its end. By the line alone steps get 1.4 times as long as they may."""
    cost = StepCost(0.98)
    for _ in range(100):
        cost.add(8, 0.0095)
    done, took = 0, []
    while done < 1000:
        rows = rows_for(cost, 0.06)
        took.append(0.0095 + rows * 0.0005 * (1 + done / 800))
        cost.add_prompts(8 + rows, took[-1], *EXCESS)
        done += rows
    assert max(took) < 0.075
    assert sorted(took)[len(took) // 2] > 0.05


def test_what_was_once_longer_is_forgotten():
    cost = StepCost(0.98)
    for _ in range(100):
        cost.add_prompts(10, 0.010, *EXCESS)
    cost.add_prompts(10, 1.0, *EXCESS)
    assert cost.excess > 1.4
    for _ in range(10):
        cost.add_prompts(10, 0.010, *EXCESS)
    assert cost.excess == pytest.approx(1, abs=0.01)
