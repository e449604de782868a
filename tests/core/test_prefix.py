"""The index of token blocks against a model of the truth, and sharing between running sequences."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from core.test_runner import Rig
from llamafast._core.prefix import PrefixIndex

BLOCK = 16


def tokens_of(path):
    """Blocks named by small numbers, so that prefixes meet often."""
    return array("i", [100 * block + i for block in path for i in range(BLOCK)])


PATHS = st.lists(st.integers(0, 2), max_size=5).map(tuple)


class IndexMachine(RuleBasedStateMachine):
    """insert, remove and find against a dict of paths."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.paths = {}

    @rule(owner=st.integers(0, 255), path=PATHS)
    def insert(self, owner, path):
        if owner not in self.paths:
            self.index.insert(owner, tokens_of(path))
            self.paths[owner] = path

    @rule(data=st.data())
    def remove(self, data):
        if self.paths:
            owner = data.draw(st.sampled_from(sorted(self.paths)))
            self.index.remove(owner, tokens_of(self.paths.pop(owner)))

    @rule(path=PATHS, rest=st.integers(0, BLOCK - 1))
    def find(self, path, rest):
        expected = 0
        for n in range(1, len(path) + 1):
            if any(other[:n] == path[:n] for other in self.paths.values()):
                expected = n
        owners = [o for o, other in sorted(self.paths.items()) if expected and other[:expected] == path[:expected]]
        assert self.index.find(tokens_of(path) + array("i", [7] * rest)) == (expected, owners)

    @invariant()
    def holds_nothing_else(self):
        assert len(self.index) == len({path[:n] for path in self.paths.values() for n in range(1, len(path) + 1)})


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_table_grows_and_shrinks():
    index = PrefixIndex()
    texts = [array("i", [owner, *range(16 * 20 - 1)]) for owner in range(256)]
    for owner, text in enumerate(texts):
        index.insert(owner, text)
    assert len(index) == 256 * 20
    assert all(index.find(text) == (20, [owner]) for owner, text in enumerate(texts))
    for owner, text in enumerate(texts):
        index.remove(owner, text)
    assert len(index) == 0


@pytest.mark.parametrize("owner", [-1, 256])
def test_owners_out_of_range_are_refused(owner):
    with pytest.raises(ValueError, match="owner"):
        PrefixIndex().insert(owner, tokens_of((1,)))


@pytest.fixture(scope="module")
def rig(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    yield rig
    rig.close()


SYSTEM = [33 + (7 * i) % 300 for i in range(100)]


def decoded(rig):
    return rig.runner.counts()["prompt_tokens"]


def test_a_burst_computes_its_common_prefix_once(rig):
    prompts = [[*SYSTEM, *range(40 + 10 * tag, 45 + 10 * tag)] for tag in range(8)]
    alone = {}
    for tag, prompt in enumerate(prompts):
        alone |= rig.run(rig.sequence(prompt, tag))
    before = decoded(rig)
    sequences = [rig.sequence(prompt, tag) for tag, prompt in enumerate(prompts)]
    assert rig.run(*sequences) == alone
    assert decoded(rig) - before == 100 + 8 * 5
    assert [sequence.n_cached for sequence in sequences] == [0] + [100] * 7


def test_choices_of_one_prompt_compute_it_once(rig):
    before = decoded(rig)
    results = rig.run(*(rig.sequence(SYSTEM, tag) for tag in range(4)))
    assert len(set(results.values())) == 1
    assert decoded(rig) - before == 100 + 3


def test_a_running_answer_lends_its_prompt_and_what_it_has_said(rig):
    first = rig.sequence(SYSTEM, 1, max_tokens=60)
    expected = rig.run(rig.sequence(SYSTEM, 1, max_tokens=60))
    rig.runner.add(first)
    rig.runner.run(40)
    said = first.tokens()
    follow_up = [*said, 50, 51]
    before = decoded(rig)
    second = rig.sequence(follow_up, 2)
    results = rig.run(second)
    assert decoded(rig) - before == 2
    assert second.n_cached == len(said)
    assert results[1] == expected[1]
    assert results[2] == rig.run(rig.sequence(follow_up, 2))[2]


def test_a_leader_that_leaves_hands_over(rig):
    prompts = [[*SYSTEM, *SYSTEM[::-1], tag] for tag in range(40, 44)]
    alone = {}
    for tag, prompt in enumerate(prompts):
        alone |= rig.run(rig.sequence(prompt, tag))
    leader, *others = (rig.sequence(prompt, tag) for tag, prompt in enumerate(prompts))
    for sequence in (leader, *others):
        rig.runner.add(sequence)
    before = decoded(rig)
    rig.runner.run(1)
    assert 0 < leader.n_past < 201
    rig.runner.remove(leader)
    assert others[0].n_past > 0
    results = rig.run()
    assert {tag: results[tag] for tag in (1, 2, 3)} == {tag: alone[tag] for tag in (1, 2, 3)}
    assert decoded(rig) - before == 200 + 3


def test_who_lost_its_leader_still_finds_an_earlier_one(rig):
    """b waits for a, which follows x; when a goes, b has x's part in common with x, though c knows more of b."""
    x = rig.sequence([*SYSTEM, *SYSTEM, 40, 41], 1, max_tokens=40)
    tail = [50 + i % 9 for i in range(40)]
    a, b, c = (rig.sequence([*SYSTEM, *SYSTEM, *tail, 60 + tag], tag, max_tokens=4) for tag in (2, 3, 4))
    for sequence in (x, a, b, c):
        rig.runner.add(sequence)
    rig.runner.run(1)
    rig.runner.remove(a)
    before = decoded(rig)
    rig.run()
    assert decoded(rig) - before <= 202 + 41 + 1
    rig.collect()


def test_a_preempted_sequence_is_not_its_own_cache_hit(rig):
    before = rig.runner.counts()
    sequence = rig.sequence([*SYSTEM, *SYSTEM], 1)
    rig.runner.add(sequence)
    rig.runner.run(1)
    saved, n_saved = rig.runner.save(sequence), sequence.n_past
    rig.runner.remove(sequence)
    assert rig.runner.add(sequence, saved, n_saved) == n_saved
    rig.run()
    after = rig.runner.counts()
    assert sequence.n_cached == 0
    assert after["prefix_hits"] == before["prefix_hits"]
    assert after["prefix_queries"] - before["prefix_queries"] == 200


def test_a_state_that_is_none_is_computed(rig):
    expected = rig.run(rig.sequence(SYSTEM, 1))
    sequence = rig.sequence(SYSTEM, 1)
    assert rig.runner.add(sequence, b"not a state", 50) == 0
    assert rig.run() == expected
    with pytest.raises(ValueError, match="saved"):
        rig.runner.add(rig.sequence(SYSTEM, 2), b"", 100)


TOKENS = st.lists(st.sampled_from([40, 41]), min_size=1, max_size=6)


CHUNKS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), TOKENS, st.booleans()), min_size=2, max_size=14)


@settings(max_examples=25, deadline=None)
@given(chunks=CHUNKS)
def test_sharing_never_shows_in_the_text(rig, chunks):
    """Random prompts out of common parts, arriving and leaving at random moments, answer what they answer alone."""
    rig.runner.clear()
    rig.collect()
    parts = [SYSTEM[:n] for n in (0, 20, 48, 90)]
    prompts = [[*parts[part], *tail] for part, _, tail, _ in chunks]
    alone = {}
    for tag, prompt in enumerate(prompts):
        alone |= rig.run(rig.sequence(prompt, tag, max_tokens=6))
    together, left = {}, set()

    def take():
        rig.tidy()
        for tag, (text, n_tokens, finish) in rig.collect().items():
            before = together.get(tag, ("", 0, 0))
            together[tag] = (before[0] + text, before[1] + n_tokens, finish)

    for tag, (_, steps, _, leaves) in enumerate(chunks):
        sequence = rig.sequence(prompts[tag], tag, max_tokens=6)
        rig.runner.add(sequence)
        rig.runner.run(steps)
        if leaves and not sequence.finished:
            rig.runner.remove(sequence)
            left.add(tag)
        take()
    while rig.runner.n_running:
        rig.runner.run(100)
        take()
    assert {tag: text for tag, text in together.items() if tag not in left} == {
        tag: text for tag, text in alone.items() if tag not in left
    }
