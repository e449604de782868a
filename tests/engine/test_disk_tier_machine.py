"""A TieredCache whatever happens to its disk: every hit is true, and every number is what a recount gives."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.fake_store import FakeStore

from engine.test_handles import AT_ONCE, KINDS, FakeRunner, FakeSequence, compute
from llamafast.engine import disk_tier
from llamafast.engine.disk_entries import index_bytes
from llamafast.engine.disk_tier import TieredCache
from llamafast.engine.kv_transfer import KVTransfer
from llamafast.engine.pace import Pace
from llamafast.engine.prefix_key import PrefixKey

BUDGET, MAX_BYTES = 22_000, 62_000
# tokens of a part of a prompt, which long ones continue; fewer are not brought for themselves
PART, MIN_TOKENS = 35, (20, 80)
INVOKED_AT = (3, 35, 60)
PROMPTS = st.tuples(
    st.lists(st.integers(0, 1), min_size=1, max_size=4),
    st.sampled_from([0, 5, 19]),
    st.sampled_from([b"", b"", b"salt"]),
    st.sampled_from([None, *INVOKED_AT]),
)
PRIVATE = PrefixKey(private=1).encoded()


def sequence_of(prompt, private=False):
    path, rest, salt, invoked_at = prompt
    ids = [100 * part + i for part in path for i in range(PART)] + [7] * rest
    return FakeSequence([*ids, 1], PRIVATE if private else salt, invoked_at)


class FatRunner(FakeRunner):
    """Its states take more than what tells of them."""

    def save(self, sequence, start, stop):
        return super().save(sequence, start, stop) + bytes(4000)


def kept_numbers(cache):
    return {
        "used": cache.used_bytes,
        "states": cache.n_states,
        "bare": cache._n_bare,
        "disk": cache._entries.n_bytes,
        "index": cache._entries.index_bytes,
        "asked": cache._traffic.asked_bytes,
        "queued": cache._traffic.queued_bytes,
        "queue": cache._traffic.n_queued,
        "by id": cache._entries.by_id,
    }


def recounted(cache):
    """The same, anew from its states."""
    states = cache._states
    entries = [state.entry for state in states if state.entry is not None]
    return {
        "used": sum(index_bytes(state.spares) + len(state.saved or b"") for state in states),
        "states": len(states),
        "bare": sum(state.saved is None for state in states),
        "disk": sum(entry.n_bytes for entry in entries),
        "index": sum(index_bytes(state.spares) for state in states if state.entry is not None),
        "asked": sum(entry.n_bytes for entry in entries if entry.asked_at is not None),
        "queued": sum(len(entry.saved) for entry in entries if entry.head is None),
        "queue": sum(entry.head is None for entry in entries),
        "by id": {state.entry.id: state for state in states if state.entry is not None},
    }


class Tiers(RuleBasedStateMachine):
    """Sequences come, are restored bit by bit, compute and leave; reads and writes are carried out in order, some fail,
    files vanish, and the process ends and starts again."""

    @initialize(
        kind=st.sampled_from(KINDS), elsewhere=st.sampled_from([0, 30_000]), min_tokens=st.sampled_from(MIN_TOKENS)
    )
    def begin(self, kind, elsewhere, min_tokens):
        self.min_tokens = min_tokens
        self.n_cuttable, self.in_parts = kind
        self.elsewhere = elsewhere
        self.disk = {}
        self.start_process()

    def start_process(self):
        self.store = FakeStore(self.disk, MAX_BYTES, elsewhere=self.elsewhere)
        self.cache = TieredCache(
            BUDGET, self.store, self.min_tokens, n_cuttable=self.n_cuttable, in_parts=self.in_parts
        )
        self.runner = FatRunner(self.in_parts, self.n_cuttable)
        self.transfer = KVTransfer(self.runner, self.cache, Pace())

    @rule(prompt=PROMPTS, private=st.sampled_from([False] * 7 + [True]))
    def start(self, prompt, private):
        self.transfer.start(sequence_of(prompt, private))

    @rule(deadline=st.sampled_from([AT_ONCE, float("inf")]))
    def restore(self, deadline):
        self.transfer.restore(deadline)

    @rule(data=st.data())
    def compute(self, data):
        if able := [sequence for sequence in self.runner.running if not sequence.restoring]:
            compute(data.draw(st.sampled_from(able)))

    @rule(data=st.data(), how=st.sampled_from(["stop", "stop", "discard"]))
    def leave(self, data, how):
        if self.runner.running:
            getattr(self.transfer, how)(data.draw(st.sampled_from(self.runner.running)))

    @rule(prompts=st.lists(PROMPTS, min_size=1, max_size=4), quiet=st.booleans())
    def run_alone(self, prompts, quiet):
        """Some come one after another, and wait for their bytes or, while nothing happens, for none."""
        for prompt in prompts:
            sequence = sequence_of(prompt)
            self.transfer.start(sequence)
            while not quiet and sequence.restoring:
                self.happen()
                self.transfer.restore(float("inf"))
            compute(sequence)
            self.transfer.stop(sequence)

    @rule(data=st.data())
    def look_ahead(self, data):
        prompts = data.draw(st.lists(PROMPTS, max_size=2))
        self.transfer.look_ahead([sequence_of(prompt) for prompt in prompts])

    @rule()
    def list_next(self):
        self.store.list_next()

    @rule(n=st.integers(1, 4), done=st.sampled_from([True, True, True, False]), full=st.booleans())
    def carry_out(self, n, done, full):
        for _ in range(n):
            self.store.carry_out(done, full)

    @rule(done=st.sampled_from([True, True, True, False]))
    def bring(self, done):
        self.store.bring(done)

    @rule(all_of_it=st.booleans())
    def settle(self, all_of_it):
        self.cache.settle(1.0 if all_of_it else 0.0)

    @rule()
    def settle_idle(self):
        self.cache.settle_idle()

    @rule()
    def happen(self):
        """Everything that is under way comes to its end."""
        self.store.run()
        self.cache.settle(1.0)

    @rule(place=st.integers(0, 5), sure=st.sampled_from([False, False, True]))
    def vanish(self, place, sure):
        if sure and place < len(self.disk):
            self.store.lose(list(self.disk)[place])

    @rule(seconds=st.sampled_from([0.01, 1.0, 100.0]))
    def pass_time(self, seconds):
        disk_tier.time.now += seconds

    @rule(takes=st.sampled_from([True, True, False]))
    def take(self, takes):
        self.runner.takes = takes

    @rule(paused=st.booleans())
    def pause(self, paused):
        self.store.write_paused = paused

    @rule(how=st.sampled_from(["", "", "", "", "forget_saved", "clear"]))
    def forget(self, how):
        if how:
            getattr(self.transfer, how)()

    @rule(how=st.sampled_from(["", "", "", "killed", "closed"]))
    def restart(self, how):
        if how == "closed":
            self.transfer.clear()
            self.cache.close(5.0)
        if how:
            self.start_process()

    @invariant()
    def numbers_are_what_they_count(self):
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        states = cache._states
        assert all(state.kept for state in states)
        assert kept_numbers(cache) == recounted(cache)
        in_ram, on_disk = Counter(), Counter()
        for state in states:
            in_ram[state.base] += state.saved is not None
            on_disk[state.base] += state.entry is not None
        for state in states:
            assert state.n_heirs == in_ram[state] + cache._held[state]
            assert state.base is None or state.base.kept
            if state.entry is None:
                assert state.saved is not None
                assert not on_disk[state]
            else:
                assert state.entry.n_heirs == on_disk[state]
                assert state not in cache._candidates
        assert set(cache._candidates) <= states

    @invariant()
    def what_may_go_can_be_found(self):
        if not hasattr(self, "cache"):
            return
        leaves = {state for state, _ in self.cache._leaves}
        entries = {entry for _, entry in self.cache._entries._leaves}
        for state in self.cache._states:
            if state.saved is not None and not state.n_heirs:
                assert state in leaves
            entry = state.entry
            if entry is not None and entry.head is not None and not entry.n_heirs:
                assert entry in entries or (state.saved is None and state.n_heirs)

    @invariant()
    def nothing_is_larger_than_allowed(self):
        if not hasattr(self, "cache"):
            return
        assert self.store.used_bytes <= MAX_BYTES
        if self.cache._admission.listed:
            assert self.cache._entries.n_bytes + self.elsewhere <= MAX_BYTES
        if not self.cache._held:
            assert self.cache.used_bytes <= BUDGET

    @invariant()
    def private_prefixes_stay_in_ram(self):
        if not hasattr(self, "cache"):
            return
        salts = [b"", b"salt", *(b"%b from %d on" % (salt, at) for salt in (b"", b"salt") for at in INVOKED_AT)]
        roots = set(map(self.store.folder.root, salts))
        assert {bytes.fromhex(kept.head.root) for kept in self.disk.values()} <= roots
        # what longer ones continue is there too
        least = min(self.min_tokens, PART)
        assert all(kept.head.stop >= least or not self.in_parts for kept in self.disk.values())

    @invariant()
    def what_is_in_memory_can_be_kept(self):
        if hasattr(self, "cache"):
            assert not self.transfer.counts()["save_failures"]

    def teardown(self):
        if not hasattr(self, "cache"):
            return
        for sequence in list(self.runner.running):
            self.transfer.stop(sequence)
        self.transfer.look_ahead([])
        assert not self.cache._held
        self.store.run()
        self.cache.settle(1.0)
        self.numbers_are_what_they_count()
        self.cache.clear()
        assert (self.cache.used_bytes, self.cache.n_states, self.cache._tree.empty) == (0, 0, True)
        self.store.run()
        assert not self.disk


@pytest.fixture(autouse=True)
def small(monkeypatch, little_ram, clock):
    monkeypatch.setattr(disk_tier, "INDEX_SHARE", 2)


@pytest.mark.parametrize("n_examples", [30, pytest.param(150, marks=pytest.mark.heavy)])
def test_every_hit_is_true_and_every_number_right(n_examples):
    run_state_machine_as_test(Tiers, settings=settings(max_examples=n_examples, stateful_step_count=50, deadline=None))
