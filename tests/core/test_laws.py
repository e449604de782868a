"""The laws of sequence.pxd under random orders, in every kind of memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict
from support.masker_lanes import masking

from core.inside import may_follow
from core.test_masks import SECOND, Cycle
from core.test_runner import Rig
from llamafast._core.constraint import Constraint
from llamafast._core.runner import Runner
from llamafast._core.sequence import (
    N_PHASES,
    PHASE_DECODING,
    PHASE_ENDED,
    PHASE_FOLLOWING,
    PHASE_PARKED,
    PHASE_PREFILLING,
    PHASE_RESTORING,
    PHASE_WAITING,
)
from llamafast._core.step import FINISHED, PAUSED, SAVE_DUE
from llamafast.engine.pace import Pace

SYSTEM = [(11 * k) % 300 + 33 for k in range(100)]
KINDS = {
    "unified": ("tiny-llama", {}),
    "partitioned": ("tiny-llama", {"kv_unified": False}),
    "window": ("tiny-gemma3-swa", {"swa_full": False}),
    "hybrid": ("tiny-qwen35", {}),
    "recurrent": ("tiny-mamba", {}),
}
# whom an order is for, by its place among those it can be for
ONE = st.integers(0, 7)
ORDERS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from([0, 20, 48, 90]), st.lists(st.sampled_from([40, 41]), max_size=4)),
        st.tuples(st.just("constrain"), st.integers(0, 4), st.integers(0, 3)),
        st.tuples(st.just("score"), st.integers(1, 40), st.integers(0, 3)),
        st.tuples(st.just("run"), st.integers(1, 5)),
        st.tuples(st.just("remove"), ONE),
        st.tuples(st.just("again"), ONE),
        st.tuples(st.just("save"), ONE),
        st.tuples(st.just("restore"), ONE, st.booleans()),
        st.tuples(st.just("save_at"), ONE, st.integers(1, 120)),
        st.tuples(st.just("halt"), ONE),
        st.tuples(st.just("clear")),
    ),
    min_size=3,
    max_size=24,
)


def reachable() -> set[tuple[int, int]]:
    """Which phase may be seen after which, with any number of others between."""
    pairs = {(a, b) for a in range(N_PHASES) for b in range(N_PHASES) if may_follow(a, b)}
    while more := {(a, d) for a, b in pairs for c, d in pairs if b == c} - pairs:
        pairs |= more
    return pairs


REACHABLE = reachable()


class Crowd:
    """Sequences that come, wait, run and leave as they are ordered to; every order keeps the laws."""

    def __init__(self, rig):
        self.rig, self.runner = rig, rig.runner
        self.phases = {}  # of everybody, as last seen
        self.running, self.waiting = [], []
        self.saved = None
        self.missing = {}  # of who restores: up to where

    def obey(self, order):
        getattr(self, order[0])(*order[1:])
        self.look()

    def look(self):
        self.runner.check()
        assert self.runner.n_running == len(self.running)
        for sequence, before in self.phases.items():
            assert 0 <= sequence.n_past <= sequence.n_tokens <= sequence.n_max
            assert (before, sequence.phase) in REACHABLE
            assert (sequence.phase == PHASE_ENDED) == sequence.finished
            if not sequence.finished:
                assert (sequence.phase == PHASE_WAITING) == (sequence not in self.running)
            self.phases[sequence] = sequence.phase

    def start(self, sequence, n_found=0):
        if self.runner.n_free:
            self.runner.add(sequence, n_found)
            self.running.append(sequence)
            self.phases.setdefault(sequence, PHASE_WAITING)
            if n_found:
                self.missing[sequence] = n_found

    def add(self, n_shared, tail):
        self.start(self.rig.sequence([*SYSTEM[:n_shared], 39, *tail], len(self.phases), max_tokens=6))

    def constrain(self, n_tokens, forced):
        matcher = Cycle([60 + k for k in range(n_tokens + 1)], forced=forced, pause=0.0005)
        options = {"constraint": Constraint(matcher, self.rig.vocab.n_tokens), "max_tokens": 8}
        sampling = {"logit_bias": [(SECOND, -1e9)]}
        self.start(self.rig.sequence(SYSTEM[:30], len(self.phases), sampling=sampling, **options))

    def score(self, n_tokens, max_tokens):
        options = {"top_logprobs": 2, "score_prompt": True, "max_tokens": max_tokens}
        tag = len(self.phases)
        self.start(self.rig.sequence(SYSTEM[:n_tokens], tag, salt=b"\xff%d" % tag, **options))

    def run(self, n_steps):
        assert self.runner.run(n_steps) in (PAUSED, FINISHED, SAVE_DUE)
        for sequence in self.runner.save_due():
            sequence.save_at = sequence.n_past + 50

    def remove(self, which):
        if self.running:
            sequence = self.running.pop(which % len(self.running))
            self.missing.pop(sequence, None)
            self.runner.remove(sequence)
            if not sequence.finished:
                self.waiting.append(sequence)

    def again(self, which):
        if self.waiting and self.runner.n_free:
            self.start(self.waiting.pop(which % len(self.waiting)))

    def save(self, which):
        able = [s for s in self.running if s.n_past > 1]
        if able:
            sequence = able[which % len(able)]
            tokens = sequence.tokens()[: sequence.n_past]
            self.saved = tokens, self.runner.save(sequence, 0, sequence.n_past)

    def restore(self, which, whole):
        """Bring what was saved to who waits for it; to somebody new where nobody does. Not ``whole``: it is broken."""
        if self.saved is None:
            return
        tokens, saved = self.saved
        if not self.missing:
            self.start(self.rig.sequence([*tokens, 39], len(self.phases), max_tokens=4), len(tokens))
            return
        sequence = list(self.missing)[which % len(self.missing)]
        n_found = self.missing.pop(sequence)
        if sequence.phase != PHASE_RESTORING or sequence.n_past or n_found != len(tokens):
            return
        if sequence.tokens()[:n_found] == tokens:
            done = self.runner.restore(sequence, saved if whole else b"none", 0, n_found)
            assert done == whole

    def save_at(self, which, n_tokens):
        if self.running:
            self.running[which % len(self.running)].save_at = n_tokens

    def halt(self, which):
        if self.running:
            self.runner.halt(self.running[which % len(self.running)])

    def clear(self):
        self.runner.clear()
        self.waiting += [sequence for sequence in self.running if not sequence.finished]
        self.running.clear()
        self.missing.clear()

    def leave(self):
        """Whoever can finishes, all leave."""
        for _ in range(400):
            waits = [sequence for sequence in self.running if sequence not in self.missing and not sequence.finished]
            if not any(sequence.phase != PHASE_FOLLOWING for sequence in waits):
                break
            self.obey(("run", 50))
        while self.running:
            self.obey(("remove", 0))
        assert (self.runner.n_cells, self.runner.n_running) == (0, 0)
        self.rig.collect()


@pytest.fixture(scope="module", params=KINDS)
def rig(request, tiny_model):
    name, options = KINDS[request.param]
    rig = Rig(tiny_model(name), n_seq_max=8, **options)
    with masking(rig.runner.masker):
        yield rig
    rig.close()


@settings(max_examples=25, deadline=None)
@given(orders=ORDERS)
def test_no_order_breaks_a_law(rig, orders):
    crowd = Crowd(rig)
    for order in orders:
        crowd.obey(order)
    crowd.leave()


def test_a_sequence_passes_through_its_phases(tiny_model):
    """Nobody runs the Masker: a mask that is asked for never comes."""
    rig = Rig(tiny_model("tiny-llama"), n_batch=32)
    first, second = rig.sequence(SYSTEM, 1), rig.sequence([*SYSTEM, 39], 2)
    third = rig.sequence([45, 46], 3, constraint=Constraint(Cycle([60]), rig.vocab.n_tokens))
    assert first.phase == PHASE_WAITING
    rig.runner.add(first)
    rig.runner.run(1)
    saved, n_saved = rig.runner.save(first, 0, first.n_past), first.n_past
    rig.runner.add(second)
    assert (first.phase, second.phase) == (PHASE_PREFILLING, PHASE_FOLLOWING)
    fourth = rig.sequence(SYSTEM, 4, salt=b"another")
    rig.runner.add(fourth, n_saved)
    rig.runner.add(third)
    rig.runner.run(12)
    assert [s.phase for s in (first, second, third, fourth)] == [
        PHASE_DECODING, PHASE_DECODING, PHASE_PARKED, PHASE_RESTORING
    ]  # fmt: skip
    assert rig.runner.restore(fourth, saved, 0, n_saved)
    assert fourth.phase == PHASE_PREFILLING
    rig.runner.halt(third)
    assert third.phase == PHASE_ENDED
    rig.runner.remove(first)
    assert first.phase == PHASE_WAITING
    rig.runner.check()
    rig.runner.clear()
    rig.runner.check()
    assert [s.phase for s in (first, second, third, fourth)] == [
        PHASE_WAITING, PHASE_WAITING, PHASE_ENDED, PHASE_WAITING
    ]  # fmt: skip
    rig.close()


def test_the_end_is_the_end_and_every_phase_can_be_reached():
    assert {after for after in range(N_PHASES) if (PHASE_ENDED, after) in REACHABLE} == {PHASE_ENDED}
    assert {after for after in range(N_PHASES) if (PHASE_WAITING, after) in REACHABLE} == set(range(N_PHASES))


def test_memory_that_nobody_answers_for_is_told(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    rig.runner.add(rig.sequence(SYSTEM))
    rig.runner.run(2)
    rig.runner.check()
    stranger = Runner(rig.context, rig.vocab, rig.outbox, pace=asdict(Pace()))
    with pytest.raises(AssertionError, match="sequence id 0 is free and has memory"):
        stranger.check()
    rig.runner.clear()
    stranger.check()
    rig.close()
