"""What masks behind drafted tokens may take: where they cost more than they save fewer are drafted, or none."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.constrained_drafts import OPTIONS, Masked, Watched, masked_rigs, nothing, told

from core.inside import planned, set_times
from core.test_drafts import Replay

TIMES = st.lists(st.floats(0, 1), min_size=40, max_size=40).map(
    lambda more: [1 + sum(more[: i + 1]) for i in range(len(more))]
)
CHANCES = st.lists(st.floats(0.015625, 1, width=32), min_size=1, max_size=3).map(
    lambda some: [float(c) for c in sorted(some, reverse=True)]
)
WEIGHTS = st.tuples(st.floats(0.1, 1), st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0, 3.0]))


@pytest.fixture(scope="module")
def rigs(tiny_model):
    with masked_rigs(tiny_model) as rig_of:
        yield rig_of


def test_grammars_that_are_slow_draft_nothing(rigs):
    """Each mask takes longer than a usual grammar's may."""
    rig = rigs("unified")
    every = [("[a-f]{12}", [40], 1, OPTIONS)]
    expected, tokens = told(rig, every, nothing)

    class Slow(Watched):
        def deep_copy(self):
            return Slow(self.matcher.deep_copy())

        def unsafe_compute_mask_ptr(self, pointer, n_bytes):
            for _ in range(400):
                self.matcher.deep_copy().compute_bitmask()
            super().unsafe_compute_mask_ptr(pointer, n_bytes)

    asked = []
    source = Replay(tokens, "right")
    heard = told(rig, every, lambda *args: asked.append(args) or source(*args), dress=Slow)
    assert heard == (expected, tokens)
    # it is not known to be slow before its first mask is there, while the next ones are asked for
    assert len(asked) <= 4 < 12


@given(
    TIMES,
    st.lists(st.tuples(CHANCES, WEIGHTS), min_size=1, max_size=4),
    st.integers(4, 12),
    st.floats(0, 4),
    st.booleans(),
)
def test_what_masks_take_is_counted_with_the_steps(seconds, proposals, useful, beside, passes):
    survival, weights = zip(*proposals, strict=True)

    def value(taken):
        expected = sum(
            worth * sum(chances[:n]) for chances, (worth, _), n in zip(survival, weights, taken, strict=True)
        )
        took = beside + sum(mask * n for (_, mask), n in zip(weights, taken, strict=True))
        k, m = max(taken), sum(map(bool, taken))
        if not passes:
            took += seconds[useful + sum(taken) - 1]
        else:
            took += (seconds[m * (1 + k) - 1] if m else 0) + (seconds[useful - m - 1] if useful > m else 0)
        return (useful + expected) / took

    def every(i):
        return (
            [[]] if i == len(survival) else [[n, *rest] for n in range(len(survival[i]) + 1) for rest in every(i + 1)]
        )

    able = [taken for taken in every(0) if not passes or len({n for n in taken if n}) < 2]
    taken = planned(seconds, list(survival), useful, 12, passes=passes, weights=list(weights), beside=beside)
    assert value(taken) == pytest.approx(max(map(value, able)))


def test_masks_that_take_longer_than_a_step_leave_no_time_for_drafts(tiny_model):
    """The same looks into the text, where rows take a second each and where they take less than a mask."""
    rig = Masked(tiny_model("tiny-llama"), most=8)
    prompt = [*(b'"red","green","blue",' * 6)]
    drafted = {}
    for seconds in (1.0, 1e-7):
        set_times(rig.drafter, [seconds * (1 + 0.05 * k) for k in range(64)])
        # by the first answer is known what masks take
        sequence = rig.constrained(rig.matcher('("red",|"green",|"blue",){20}'), prompt, 1, max_tokens=120)
        rig.run(sequence)
        drafted[seconds] = sequence.n_drafted
    assert drafted[1.0] > 0 == drafted[1e-7]
    rig.close()


def test_a_draft_under_a_grammar_that_costs_more_than_it_saves_ends(tiny_model):
    """What was said before is proposed, and what comes is drawn: the ledger bounds what that costs."""
    rig = Masked(tiny_model("tiny-llama"), most=8)
    set_times(rig.drafter, [1 + 0.3 * k for k in range(64)])
    chance = random.Random(1)
    prompt = [chance.choice(b"abc") for _ in range(400)]
    sampling = {"temperature": 3.0, "seed": 1}
    sequence = rig.constrained(rig.matcher("[abc]{300}"), prompt, 1, max_tokens=300, sampling=sampling)
    rig.run(sequence)
    assert (sequence.n_drafted - sequence.n_accepted) * 0.3 < sequence.n_accepted + 1 + 0.01 * 300 + 2.4
    rig.close()


def test_a_grammar_that_is_slow_behind_drafts_alone_is_soon_walked_there_no_more(tiny_model):
    """Others' masks are found in the same thread."""
    rig = Masked(tiny_model("tiny-llama"), most=8)
    set_times(rig.drafter, [0.02 * (1 + 0.01 * k) for k in range(64)])
    chance = random.Random(1)
    prompt = [chance.choice(b"abc") for _ in range(400)]
    ahead = []

    class Slow(Watched):
        def deep_copy(self):
            return Slow(self.matcher.deep_copy())

        def unsafe_compute_mask_ptr(self, pointer, n_bytes):
            if len(self.walked) > sequence.n_tokens - len(prompt):
                ahead.append(len(self.walked))
                until = time.thread_time() + 0.01
                while time.thread_time() < until:
                    pass
            super().unsafe_compute_mask_ptr(pointer, n_bytes)

    sampling = {"temperature": 3.0, "seed": 1}
    sequence = rig.constrained(Slow(rig.matcher("[abc]{300}")), prompt, 1, max_tokens=300, sampling=sampling)
    rig.run(sequence)
    assert sequence.n_tokens - len(prompt) == 300
    assert 0 < len(ahead) < 60
    rig.close()
