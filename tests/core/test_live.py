"""What sequences that run have in common: sharing, and states that are saved and restored."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.inside import n_cached
from core.test_runner import Rig
from llamafast._core.context import UNLIMITED
from llamafast._core.step import PAUSED, SAVE_DUE


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
    assert [n_cached(sequence) for sequence in sequences] == [0] + [100] * 7


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
    assert n_cached(second) == len(said)
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
    n_saved = sequence.n_past
    saved = rig.runner.save(sequence, 0, n_saved)
    rig.runner.remove(sequence)
    rig.runner.add(sequence, n_saved)
    assert rig.runner.restore(sequence, saved, 0, n_saved)
    rig.run()
    after = rig.runner.counts()
    assert n_cached(sequence) == 0
    assert after["prefix_hits"] == before["prefix_hits"]
    assert after["prefix_queries"] - before["prefix_queries"] == 200


def test_a_state_is_saved_and_restored_in_parts(rig):
    expected = rig.run(rig.sequence(SYSTEM, 1))
    source = rig.sequence(SYSTEM, 2, max_tokens=20)
    source.save_at = 60
    rig.runner.add(source)
    assert rig.runner.run(100) == SAVE_DUE
    assert rig.runner.save_due() == [source]
    source.save_at = UNLIMITED
    while source.n_past < 110:
        rig.runner.run(1)
    parts = [(rig.runner.save(source, *part), *part) for part in [(0, 40), (40, 41), (41, 110)]]
    rig.runner.remove(source)
    sequence = rig.sequence(SYSTEM, 1)
    rig.runner.add(sequence, 99)
    assert rig.runner.run(100) == PAUSED  # it waits
    for saved, start, stop in parts:
        assert rig.runner.restore(sequence, saved, start, min(stop, 99))
    before = decoded(rig)
    rig.collect()
    assert rig.run() == expected
    assert (decoded(rig) - before, n_cached(sequence)) == (1, 99)


def test_a_state_that_is_none_is_computed(rig):
    expected = rig.run(rig.sequence(SYSTEM, 1))
    sequence = rig.sequence(SYSTEM, 1)
    rig.runner.add(sequence, 50)
    assert not rig.runner.restore(sequence, b"not a state", 0, 50)
    assert rig.run() == expected
    with pytest.raises(ValueError, match="restore"):
        rig.runner.add(rig.sequence(SYSTEM, 2), 100)


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (-1, 5), (5, 5), (0, 2000), (2, 1)])
def test_parts_that_are_not_in_memory_are_refused(rig, start, stop):
    sequence = rig.sequence(SYSTEM, 1)
    rig.runner.add(sequence)
    rig.runner.run(2)
    with pytest.raises(ValueError, match="tokens"):
        rig.runner.save(sequence, start, stop)
    rig.runner.clear()
    rig.collect()


def test_who_restores_lends_to_who_waits(rig):
    """Two prompts with 90 tokens in common: one restores 80 of them, the other one takes all from it."""
    source = rig.sequence(SYSTEM, 1)
    rig.runner.add(source)
    while source.n_past < 80:
        rig.runner.run(1)
    saved = rig.runner.save(source, 0, 80)
    rig.runner.remove(source)
    rig.collect()
    first, second = (rig.sequence([*SYSTEM[:90], *tail], tag) for tag, tail in ((1, [40, 41]), (2, [50])))
    rig.runner.add(first, 80)
    rig.runner.add(second)
    assert rig.runner.run(100) == PAUSED
    before = decoded(rig)
    assert rig.runner.restore(first, saved, 0, 80)
    rig.run()
    assert (n_cached(first), n_cached(second)) == (80, 90)
    assert decoded(rig) - before == 10 + 2 + 1


def test_tenants_share_nothing(rig):
    first, second, third = (rig.sequence(SYSTEM, tag, salt=salt) for tag, salt in ((1, b"a"), (2, b"b"), (3, b"a")))
    results = rig.run(first, second, third)
    assert len(set(results.values())) == 1
    assert [n_cached(sequence) for sequence in (first, second, third)] == [0, 0, 99]


def test_a_halted_sequence_has_no_more_rows(rig):
    first, second = rig.sequence(SYSTEM, 1), rig.sequence([40], 2)
    rig.runner.add(first)
    rig.runner.add(second)
    rig.runner.run(1)
    rig.runner.halt(first)
    n_past = first.n_past
    while not second.finished:
        rig.runner.run(100)
    assert first.n_past == n_past
    assert set(rig.runner.finished()) == {first, second}
    rig.tidy()
    rig.collect()


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
