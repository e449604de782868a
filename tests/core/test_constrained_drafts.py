"""Drafts under grammars: whatever is drafted, all that is told is what it would be without."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.constrained_drafts import (
    KINDS,
    OPTIONS,
    PERSON,
    Allowed,
    Masked,
    masked_rigs,
    nothing,
    told,
    watched,
    works,
)
from support.masker_lanes import masking

from core.test_drafts import Replay
from core.test_runner import Rig
from llamafast._core.constraint import Constraint

LETTERS = st.sampled_from(["a", "b", "[a-c]", "[0-9]", "x y", "\\."])
REGEXES = st.recursive(
    LETTERS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: f"({'|'.join(some)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2,5}"])).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ),
    max_leaves=6,
)
SCHEMAS = st.recursive(
    st.sampled_from([
        {"type": "integer"}, {"type": "boolean"}, {"enum": ["red", "green", "greenish"]},
        {"type": "string", "maxLength": 6}, {"type": "string", "pattern": "^[a-f]{1,8}$"}, {"const": "always the same"},
    ]),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["name", "count", "a long key of many tokens"]), inner, min_size=1).map(
            lambda some: {"type": "object", "properties": some, "required": [*some], "additionalProperties": False}
        ),
        inner.map(lambda one: {"type": "array", "items": one, "minItems": 1, "maxItems": 4}),
    ),
    max_leaves=4,
)  # fmt: skip
GRAMMARS = st.one_of(SCHEMAS, REGEXES.filter(lambda text: not text.endswith(("*", "?"))))
HOWS = ["right", "wrong", "random", 2, "long"]


@pytest.fixture(scope="module")
def rigs(tiny_model):
    with masked_rigs(tiny_model) as rig_of:
        yield rig_of


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.heavy) if kind in ("partitioned", "window") else kind for kind in KINDS],
)
@settings(max_examples=6)
@given(grammars=st.lists(GRAMMARS, min_size=1, max_size=4), n=st.sampled_from([1, 4, 4, 16]))
def test_whatever_is_drafted_under_a_grammar_all_that_is_told_stays(rigs, kind, grammars, n):
    rig = rigs(kind)
    every = works(grammars, n)
    expected, tokens = told(rig, every, nothing)
    for how in HOWS:
        assert told(rig, every, Allowed(tokens, how)) == (expected, tokens)


def steps_of(rig, every, source, **more):
    before = rig.runner.counts()
    heard, tokens = told(rig, every, source, **more)
    after = rig.runner.counts()
    return heard, tokens, {key: after[key] - before[key] for key in ("steps", "rows", "draft_tokens_accepted")}


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_that_come_save_steps_and_forced_tokens_keep_their_rows(rigs, kind):
    rig = rigs(kind)
    every = [(PERSON, [40, 41, 42], 1, OPTIONS)]
    expected, tokens, without = steps_of(rig, every, nothing)
    tries = []
    # a masker that is held up is late: then fewer tokens are drafted
    for _ in range(3):
        heard, _, drafted = steps_of(rig, every, Replay(tokens, "right"))
        assert heard == expected
        json.loads(heard[1][0])
        tries.append(drafted)
    drafted = min(tries, key=lambda counts: counts["steps"])
    assert drafted["steps"] < 0.6 * without["steps"]
    # what is forced is drafted in the step before
    assert drafted["rows"] <= without["rows"] + 1
    assert drafted["draft_tokens_accepted"] > 0.3 * heard[1][1]


@pytest.mark.parametrize("pause", [0.0003, 0.002])
@pytest.mark.parametrize("kind", ["unified", "hybrid"])
def test_late_masks_park_their_sequence_wherever_they_are_missing(rigs, kind, pause):
    rig = rigs(kind)
    every = [(grammar, [40, 41 + tag], tag, OPTIONS) for tag, grammar in enumerate(["[a-f]{20}", PERSON, "(ab|cd)+e"])]
    expected, tokens = told(rig, every, nothing)
    for how in ("right", "wrong", 1):
        assert told(rig, every, Allowed(tokens, how), dress=watched([], pause=pause)) == (expected, tokens)
        # beside somebody who does not wait
        free = rig.sequence([50, 51], 99, max_tokens=40)
        rig.runner.add(free)
        heard, came = told(rig, every, Allowed(tokens | {99: []}, how), dress=watched([], pause=pause))
        assert (came, {tag: heard[tag] for tag in expected}) == (tokens, expected)


def test_a_plain_rig_says_the_same(tiny_model):
    """One without a drafter: what is compared above with is no other thing than that."""
    every = works(["[a-f]{9}", PERSON], 4)
    rig = Masked(tiny_model("tiny-llama"))
    expected = told(rig, every, nothing)
    plain = Rig(tiny_model("tiny-llama"))
    sequences = [
        plain.sequence(prompt, tag, constraint=Constraint(rig.matcher(grammar), plain.vocab.n_tokens), **options)
        for grammar, prompt, tag, options in every
    ]
    with masking(plain.runner.masker):
        texts = plain.run(*sequences)
    assert texts == {tag: said[:3] for tag, said in expected[0].items()}
    for one in (plain, rig):
        one.close()
