"""Matchers that walk over drafted tokens: how far they go back, and what becomes of one that fails or is left."""

from __future__ import annotations

import pytest
from support.constrained_drafts import (
    OPTIONS,
    REFUSED,
    STOP,
    Allowed,
    Watched,
    masked_rigs,
    nothing,
    told,
    watched,
)

from core.test_drafts import Replay


@pytest.fixture(scope="module")
def rigs(tiny_model):
    with masked_rigs(tiny_model) as rig_of:
        yield rig_of


def test_a_matcher_goes_back_by_what_did_not_come_and_no_more(rigs):
    rig = rigs("unified")
    every = [("[a-f]{30}", [40, 41, 42], 1, {**OPTIONS, "max_tokens": 30})]
    (_, _, finish, _), *_ = (expected := told(rig, every, nothing))[0].values()
    assert finish == STOP
    answer = expected[1][1][3:]

    def allowed(tag, tokens, most):
        """The first is right, the second one only allowed, and so is what follows."""
        right = answer[len(tokens) - 3 :]
        return [right[0], *(ord("a") + (token - ord("a") + 1) % 6 for token in right[1:4])] if right else []

    def ruled_out(tag, tokens, most):
        return [ord("z")] * min(4, most)

    for source, n_right in ((Replay(expected[1], "right"), None), (allowed, 1), (ruled_out, 0)):
        seen = []
        assert told(rig, every, source, dress=watched(seen)) == expected
        ((walker,),) = (one.copies for one in seen)
        assert walker.walked[: len(answer)] == answer[: len(walker.walked)]
        if n_right is None or n_right == 0:
            assert walker.rolled_back == []
        else:
            assert len(walker.rolled_back) > 5
            assert {len(some) for some in walker.rolled_back} <= {1, 2, 3}


@pytest.mark.parametrize("raises", [None, ValueError("no\nmore"), BaseException("panic")])
def test_a_matcher_that_fails_behind_a_draft_fails_only_if_that_comes(rigs, caplog, raises):
    rig = rigs("unified")
    every = [("[a-f]{30}", [40, 41, 42], 1, {**OPTIONS, "max_tokens": 30})]
    _, tokens = told(rig, every, nothing)
    answer = tokens[1][3:]
    other = [*answer[:9], ord("a") + (answer[9] - ord("a") + 1) % 6]

    def astray(tag, said, most):
        return [*answer, 97][len(said) - 3 :][:2] if len(said) != 3 + 7 else [*other[7:], 97, 98]

    for fails, finish in ((other, STOP), (answer[:10], REFUSED)):
        texts = []
        for source in (nothing, astray, Replay(tokens, "right")):
            seen = []
            dress = watched(seen, fails=lambda walked, fails=fails: walked == fails, raises=raises)
            heard, _ = told(rig, every, source, dress=dress)
            assert heard[1][2] == finish
            texts.append(heard[1][:2])
            n_made = len(seen[0].copies)
            # one that has failed behind what did not come is made anew
            assert n_made == 2 if source is astray and finish == STOP else n_made <= 2
        assert texts[0] == texts[1] == texts[2]
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)


def test_who_leaves_while_its_masks_are_found_ahead_goes_on_where_it_was(rigs):
    rig = rigs("unified")
    every = [("[a-f]{30}", [40, 41, 42], 1, OPTIONS)]
    expected, tokens = told(rig, every, nothing)
    for how in ("right", "wrong"):
        for n_steps in range(1, 12):
            rig.script(Allowed(tokens, how))
            matcher = Watched(rig.matcher("[a-f]{30}"), pause=0.001 * (n_steps % 3))
            sequence = rig.constrained(matcher, [40, 41, 42], 1, **OPTIONS)
            rig.runner.add(sequence)
            rig.runner.run(n_steps)
            if sequence.finished:
                rig.tidy()
            else:
                rig.runner.remove(sequence)
                rig.runner.add(sequence)
            while rig.runner.n_running:
                rig.runner.run(100)
                rig.tidy()
            assert rig.collect()[1] == expected[1][:3]
            assert list(sequence.tokens()) == tokens[1]


def test_who_is_given_up_while_its_masks_are_found_ahead_leaves_nothing(rigs):
    rig = rigs("unified")
    tokens = told(rig, [("[a-f]{30}", [40], 1, OPTIONS)], nothing)[1]
    for _ in range(20):
        rig.script(Replay(tokens, "right"))
        sequence = rig.constrained(Watched(rig.matcher("[a-f]{30}"), pause=0.002), [40], 1, **OPTIONS)
        rig.runner.add(sequence)
        rig.runner.run(3)
        rig.runner.remove(sequence)
        del sequence
    rig.collect()
