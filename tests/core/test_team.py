"""How many threads compute a batch."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.inside import Team


def batches(team, n, n_rows, cost):
    """The numbers of threads that ``n`` batches get."""
    return [team.batch(n_rows, lambda threads: n_rows * cost(threads)) for _ in range(n)]


@pytest.mark.parametrize(("n_threads", "sizes"), [
    (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 6, 8]),
    (9, [1, 2, 4, 6, 9]), (12, [1, 2, 4, 8, 12]), (16, [1, 2, 4, 8, 12, 16]), (49, [1, 2, 4, 8, 16, 32, 49]),
    (64, [1, 2, 4, 8, 16, 32, 48, 64]),
])  # fmt: skip
def test_sizes(n_threads, sizes):
    assert Team(n_threads).sizes == sizes


@given(st.integers(1, 200), st.integers(1, 5000), st.floats(0, 2), st.floats(0, 0.5))
def test_the_best_is_found_and_little_is_lost(n_threads, n_rows, work, meeting):
    """Amdahl's law with a price for each thread that has to be waited for: a curve with one minimum."""
    team = Team(n_threads)

    def cost(threads):
        return 1e-3 + work / threads + meeting * 0.01 * threads

    least = min(map(cost, team.sizes))
    batches(team, 200, n_rows, cost)
    later = batches(team, 2000, n_rows, cost)
    assert sum(map(cost, later)) / len(later) < 1.03 * max(least, least / 0.97)


def test_another_neighbour_changes_the_best():
    """A busy process comes, and goes."""
    team = Team(2)
    assert Counter(batches(team, 200, 1, lambda threads: 1 / threads)).most_common(1)[0][0] == 2
    assert Counter(batches(team, 200, 1, lambda threads: threads)).most_common(1)[0][0] == 1
    assert Counter(batches(team, 1500, 1, lambda threads: 1 / threads)).most_common(1)[0][0] == 2


def test_noise_does_not_matter():
    chance = random.Random(5)
    team = Team(8)
    seen = batches(team, 3000, 16, lambda threads: (1 + abs(threads - 4)) * chance.uniform(0.8, 1.3))
    assert Counter(seen).most_common(1)[0][0] == 4


def test_batches_of_other_sizes_are_learned_apart():
    team = Team(4)
    for _ in range(300):
        one = team.batch(1, lambda threads: threads)
        many = team.batch(512, lambda threads: 1 / threads)
    assert (one, many) in {(1, 4), (2, 4), (1, 2)}
    assert Counter(batches(team, 100, 1, lambda threads: threads)).most_common(1)[0][0] == 1
    assert Counter(batches(team, 100, 512, lambda threads: 1 / threads)).most_common(1)[0][0] == 4


def test_the_largest_are_not_tried_with_one_thread():
    """On many cores a long batch would take many times as long."""
    team = Team(64)
    assert min(batches(team, 500, 2048, lambda threads: 1 / threads)) >= 32
