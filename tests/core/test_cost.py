"""The line fitted to step times."""

from __future__ import annotations

import pytest

from core.inside import StepCost


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
