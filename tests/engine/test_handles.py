"""What is found in the prefix cache is handed out as handles: held within the budget, here, on their way or gone."""

from __future__ import annotations

from array import array
from collections import Counter
from zlib import crc32

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.late_bytes import LateCache

from engine.test_cache import LONG, keep, parts, taken, tokens
from llamafast._core.context import UNLIMITED
from llamafast._core.invocation import Invocation
from llamafast.engine.cache import PrefixCache
from llamafast.engine.kv_transfer import KVTransfer, Parts
from llamafast.engine.pace import Pace
from llamafast.engine.prefix_key import salt_at

AT_ONCE = float("-inf")


class FakeSequence:
    checkpoints = ()
    group = 0
    private = False
    save_at = 0

    def __init__(self, prompt, salt=b"", invoked_at=None):
        self.prompt, self.salt = list(prompt), salt
        self.invocation = None
        if invoked_at is not None and invoked_at < len(self.prompt):
            self.invocation = Invocation(at=invoked_at, group=1, salt=b"%b from %d on" % (salt, invoked_at))
        self.memory = []
        self.n_restore = 0

    def tokens(self):
        return array("i", self.prompt)

    @property
    def rows(self):
        """What is to be in its memory: of each token whose it is, too."""
        whose = [salt_at(k + 1, self.salt, self.invocation) for k in range(len(self.prompt))]
        return [token << 10 | crc32(salt) & 1023 for token, salt in zip(self.prompt, whose, strict=True)]

    def cut_before(self, n):
        return n

    def cut_behind(self, n):
        return n

    @property
    def n_tokens(self):
        return len(self.prompt)

    n_prompt = n_scored = n_tokens

    @property
    def n_past(self):
        return len(self.memory)

    @property
    def restoring(self):
        return self.n_past < self.n_restore


class FakeRunner:
    """Memory is lists of rows; a saved state is where it starts and its rows."""

    def forget_answers(self):
        """It drafts nothing."""

    def __init__(self, in_parts=True, n_cuttable=UNLIMITED):
        self.in_parts = in_parts
        self.n_cuttable = n_cuttable
        self.takes = True
        self.running = []
        self.total_cells, self.n_cells = 10**6, 0

    def shareable(self, sequence):
        return 0, 0

    def add(self, sequence, n_found):
        sequence.n_restore = n_found
        self.running.append(sequence)

    def restore(self, sequence, saved, start, stop):
        first, *held = array("i", saved)
        assert first <= start < stop <= min(first + len(held), sequence.n_restore)
        assert start == (sequence.n_past if self.in_parts else 0)
        if self.takes:
            sequence.memory[start:] = held[start - first : stop - first]
            assert sequence.memory == sequence.rows[:stop]
        else:
            sequence.n_restore = sequence.n_past
        return self.takes

    def forgo(self, sequence):
        sequence.n_restore = sequence.n_past

    def save(self, sequence, start, stop):
        assert stop == sequence.n_past or (self.in_parts and stop <= sequence.n_past <= self.n_cuttable)
        return array("i", [start, *sequence.memory[start:stop]]).tobytes()

    def remove(self, sequence):
        self.running.remove(sequence)
        sequence.memory.clear()

    def clear(self):
        for sequence in list(self.running):
            self.remove(sequence)


def transfer_of(cache, in_parts=True):
    runner = FakeRunner(in_parts)
    return runner, KVTransfer(runner, cache, Pace())


def compute(sequence):
    """Whatever it has not restored."""
    sequence.memory = sequence.rows


def run_through(transfer, prompt, salt=b""):
    sequence = FakeSequence(prompt, salt)
    transfer.start(sequence)
    transfer.restore(float("inf"))
    compute(sequence)
    transfer.stop(sequence)


def test_what_is_held_stays_and_counts():
    cache = PrefixCache(60_000)
    for first in range(4):
        keep(cache, [first], LONG, saved=b"%d" % first * 9000)
    held = Parts(cache, cache.find(tokens([0], LONG, [1]), b"", 0))
    for first in range(10, 200):
        keep(cache, [first], LONG, saved=b"x" * 9000)
        assert cache.used_bytes <= cache.budget
    assert cache.used_bytes > 50_000
    assert not parts(cache, [1], LONG)
    assert held.saved == b"0" * 9000
    held.clear()
    for first in range(200, 2000):
        keep(cache, [first], LONG, saved=b"x" * 9000)
    assert not parts(cache, [0], LONG)


def test_where_all_is_held_nothing_new_is_kept():
    cache = PrefixCache(30_000)
    keep(cache, [0], LONG, saved=b"x" * 15_000)
    held = Parts(cache, cache.find(tokens([0], LONG, [1]), b"", 0))
    state = cache.put(tokens([1], LONG), b"", b"x" * 15_000)
    assert (state.kept, state.saved) == (False, b"")
    assert (cache.n_states, len(held)) == (1, 1)


def test_what_is_held_twice_is_let_go_of_twice():
    cache = PrefixCache(10**6)
    keep(cache, LONG)
    found = cache.find(tokens(LONG, [1]), b"", 0)
    first, second = Parts(cache, found), Parts(cache, found)
    first.take()
    assert list(cache._held.values()) == [1]
    second.clear()
    assert not cache._held


def test_a_whole_state_is_not_replaced_while_it_is_held():
    cache = PrefixCache(10**6, in_parts=False)
    keep(cache, LONG[:100], saved=b"short")
    held = Parts(cache, cache.find(tokens(LONG[:100], [1]), b"", 0))
    keep(cache, LONG, saved=b"long")
    assert (cache.n_states, held.saved) == (2, b"short")
    assert parts(cache, LONG) == [(b"long", 0, 200)]


def test_a_prefix_that_was_found_is_restored_whatever_is_saved_meanwhile():
    cache = PrefixCache(20_000)
    _, transfer = transfer_of(cache)
    run_through(transfer, [*LONG, *range(200)])
    run_through(transfer, [*LONG, *range(200), *range(500, 600)])
    sequence = FakeSequence([*LONG, *range(200), *range(500, 600), 1])
    transfer.start(sequence)
    transfer.restore(AT_ONCE)
    assert 0 < sequence.n_past < 500
    for first in range(50):
        run_through(transfer, [first, *range(700, 1000)])
        assert cache.used_bytes <= cache.budget
    transfer.restore(float("inf"))
    assert sequence.n_past == 500
    assert not cache._held


def test_what_was_forgotten_meanwhile_is_computed():
    cache = PrefixCache(10**6)
    _, transfer = transfer_of(cache)
    run_through(transfer, LONG)
    run_through(transfer, [*LONG, *range(100)])
    sequence = FakeSequence([*LONG, *range(100), 1])
    transfer.start(sequence)
    transfer.restore(AT_ONCE)
    assert (sequence.n_past, sequence.n_restore) == (200, 300)
    assert transfer.forget_saved() > 0
    assert cache.used_bytes == 0
    transfer.restore(AT_ONCE)
    assert (sequence.n_past, sequence.n_restore) == (200, 200)
    assert not transfer.has_work
    assert transfer.counts()["restore_failures"] == 0
    compute(sequence)
    transfer.stop(sequence)
    assert taken(cache, cache.find(tokens(sequence.prompt), b"", 0))[-1][2] == 300


def test_who_waits_for_bytes_is_passed_over():
    cache = LateCache(10**6)
    _, transfer = transfer_of(cache)
    for prompt in (LONG, range(300)):
        run_through(transfer, prompt)
    cache.sink()
    late, early = FakeSequence([*LONG, 1]), FakeSequence([*range(300), 1])
    transfer.start(late)
    transfer.start(early)
    assert not transfer.has_work
    assert transfer.awaits_bytes
    cache.asked.reverse()
    cache.bring()
    assert transfer.has_work
    transfer.restore(AT_ONCE)
    assert (late.n_past, early.n_past) == (0, 300)
    assert not transfer.has_work
    assert transfer.awaits_bytes
    cache.bring(done=False)
    transfer.restore(AT_ONCE)
    assert not late.restoring
    assert not transfer.awaits_bytes
    assert not cache._held


PROMPTS = st.tuples(
    st.lists(st.integers(0, 2), min_size=1, max_size=5),
    st.integers(0, 19),
    st.sampled_from([b"", b"salt"]),
    st.sampled_from([None, None, 3, 35, 60, 100]),
)
KINDS = [(UNLIMITED, True), (UNLIMITED, False), (0, True), (90, True), (0, False)]


class Handles(RuleBasedStateMachine):
    """Sequences come, are restored bit by bit, compute, and leave in every way, while bytes come or are lost.

    The fakes assert that every hit is true.
    """

    budget = 12_000

    @initialize(kind=st.sampled_from(KINDS))
    def begin(self, kind):
        n_cuttable, in_parts = kind
        self.cache = LateCache(self.budget, n_cuttable=n_cuttable, in_parts=in_parts)
        self.runner, self.transfer = transfer_of(self.cache, in_parts)
        self.states = []
        put = self.cache.put
        self.cache.put = lambda *args: (state := put(*args), self.states.append(state))[0]

    @rule(prompt=PROMPTS)
    def start(self, prompt):
        path, rest, salt, invoked_at = prompt
        ids = [100 * part + i for part in path for i in range(35)] + [7] * rest
        self.transfer.start(FakeSequence([*ids, 1], salt, invoked_at))

    @rule(deadline=st.sampled_from([AT_ONCE, float("inf")]))
    def restore(self, deadline):
        self.transfer.restore(deadline)

    @rule(data=st.data())
    def compute(self, data):
        if able := [sequence for sequence in self.runner.running if not sequence.restoring]:
            compute(data.draw(st.sampled_from(able)))

    @rule(data=st.data(), how=st.sampled_from(["stop", "discard"]))
    def leave(self, data, how):
        if self.runner.running:
            getattr(self.transfer, how)(data.draw(st.sampled_from(self.runner.running)))

    @rule(done=st.sampled_from([True, True, True, False]))
    def bring(self, done):
        self.cache.bring(done)

    @rule()
    def sink(self):
        self.cache.sink()

    @rule(takes=st.sampled_from([True, True, False]))
    def take(self, takes):
        self.runner.takes = takes

    @precondition(lambda self: len(self.states) > 5)
    @rule(how=st.sampled_from(["forget_saved", "clear"]))
    def forget(self, how):
        getattr(self.transfer, how)()

    @invariant()
    def the_budget_holds(self):
        if not hasattr(self, "cache"):
            return
        kept = [state for state in self.states if state.kept]
        assert self.cache.used_bytes == sum(state.n_bytes for state in kept) <= self.budget
        awaited = [part.state for parts in self.transfer._restores.values() for part in parts._parts]
        held = Counter(state for state in awaited if state.kept)
        assert self.cache._held == held
        heirs = Counter(state.base for state in kept)
        assert all(state.n_heirs == heirs[state] + held[state] for state in kept)

    def teardown(self):
        if not hasattr(self, "cache"):
            return
        for sequence in list(self.runner.running):
            self.transfer.stop(sequence)
        assert not self.cache._held
        self.cache.budget = 0
        while self.cache.n_states:
            self.cache._evict()
        assert (self.cache.used_bytes, self.cache._tree.empty) == (0, True)


@pytest.mark.parametrize("n_examples", [25, pytest.param(100, marks=pytest.mark.heavy)])
def test_the_budget_holds_and_nothing_stays_held(n_examples):
    steps = settings(max_examples=n_examples, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(Handles, settings=steps)
