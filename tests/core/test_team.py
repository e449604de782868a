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


# seconds of a step of one row and of a prompt's batch, by threads, alone and beside a busy process
PROMPT, STEPS = 32, 64
ALONE = {1: {1: 4.9, 2: 4.3}, PROMPT: {1: 35, 2: 22}}
BESIDE = {1: {1: 4.9, 2: 19}, PROMPT: {1: 36, 2: 70}}


def requests(team, n, seconds):
    """What ``n`` requests take ÷ what they take with the best numbers of threads."""
    spent = 0

    def cost(threads):
        nonlocal spent
        spent += (took := seconds[n_rows][threads])
        return took

    for _ in range(n):
        for n_rows in (PROMPT, *[1] * STEPS):
            team.batch(n_rows, cost)
    return spent / n / (min(seconds[PROMPT].values()) + STEPS * min(seconds[1].values()))


def test_rare_batches_know_of_a_neighbour_what_frequent_ones_know():
    """There is one prompt in 65 batches. It does not find out anew by itself that somebody has come."""
    team = Team(2)
    requests(team, 2, ALONE)
    assert requests(team, 10, ALONE) < 1.03
    requests(team, 1, BESIDE)
    assert requests(team, 10, BESIDE) < 1.03
    requests(team, 10, ALONE)
    assert requests(team, 10, ALONE) < 1.03


def test_what_is_many_times_slower_is_tried_at_last():
    """So it is found out that somebody has gone."""
    team = Team(2)
    batches(team, 100, 1, lambda threads: threads**3)
    later = batches(team, 3000, 1, lambda threads: 1 if threads == 1 else 8)
    assert 1 <= later[200:].count(2) < 10


def test_one_batch_that_is_held_up_changes_nothing():
    team = Team(2)
    batches(team, 200, 1, lambda threads: 1 / threads**0.2)
    team.batch(1, lambda threads: 10)
    assert batches(team, 32, 1, lambda threads: 1 / threads**0.2).count(1) < 4


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
