"""Drafts under grammars: whatever is drafted, all that is told is what it would be without."""

from __future__ import annotations

import json
import random
import threading
import time
from struct import iter_unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from core.inside import planned, set_times
from core.test_drafts import SAMPLINGS, Drafting, Replay
from core.test_runner import Rig
from llamafast._core.constraint import Constraint
from llamafast._core.step import FINISHED, PAUSED
from llamafast.chat.grammar.compiler import grammar_tokenizer

KINDS = {
    "unified": ("tiny-llama", {}),
    "partitioned": ("tiny-llama", {"kv_unified": False}),
    "window": ("tiny-gemma3-swa", {"swa_full": False}),
    "hybrid": ("tiny-qwen35", {"n_rs_seq": 4}),
}
STOP, LENGTH, REFUSED = 1, 2, 3


class Masked(Drafting):
    """A rig whose grammars are walked, and one beside it that drafts nothing."""

    def __init__(self, path, **settings):
        super().__init__(path, **settings)
        self.tokenizer = grammar_tokenizer(self.vocab)
        self.masking = [
            threading.Thread(target=self.runner.masker.run, kwargs={"slow": slow}) for slow in (False, True)
        ]
        for thread in self.masking:
            thread.start()

    def close(self):
        self.runner.masker.close()
        for thread in self.masking:
            thread.join()
        super().close()

    def matcher(self, grammar):
        """Of a regular expression, or of a JSON schema."""
        text = LLMatcher.grammar_from_regex(grammar) if isinstance(grammar, str) else json_grammar(grammar)
        matcher = LLMatcher(self.tokenizer, text, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def constrained(self, matcher, prompt, tag, **options):
        return self.sequence(prompt, tag, constraint=Constraint(matcher, self.vocab.n_tokens), **options)


def json_grammar(schema):
    return LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": False})


@pytest.fixture(scope="module")
def rigs(tiny_model):
    made = {}

    def rig_of(kind):
        if kind not in made:
            name, settings = KINDS[kind]
            made[kind] = Masked(tiny_model(name), **settings)
        return made[kind]

    yield rig_of
    for rig in made.values():
        rig.close()


# -- what is walked --

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


class Allowed(Replay):
    """Its wrong tokens are mostly ones that grammars allow, and now and then its draft goes on behind one."""

    def __call__(self, tag, tokens, most):
        if self.how != "wrong":
            return super().__call__(tag, tokens, most)
        right = self.truths[tag][len(tokens) : len(tokens) + most]
        return [token if self.chance.random() < 0.5 else self.chance.choice(b'abc012"') for token in right]


def works(grammars, n):
    """So many of all grammars, at different samplings, ends and lengths."""
    every = []
    for tag in range(n):
        prompt = [33 + (7 * tag + 13 * k * (tag + 1)) % 200 for k in range(3 + 17 * tag % 90)]
        own = {
            "sampling": SAMPLINGS[tag % len(SAMPLINGS)],
            "max_tokens": 12 + tag * 7 % 30,
            "top_logprobs": 2 if tag % 2 else -1,
            "stops": (b"b2",) if tag % 3 == 2 else (),
        }
        every.append((grammars[tag % len(grammars)], prompt, tag, own))
    return every


def told(rig, every, source, *, dress=lambda matcher: matcher):
    """Run them; what was told of each, and its tokens."""
    rig.script(source)
    sequences = []
    for grammar, prompt, tag, options in every:
        sequences.append(rig.constrained(dress(rig.matcher(grammar)), prompt, tag, **options))
        rig.runner.add(sequences[-1])
    while rig.runner.n_running:
        assert rig.runner.run(1) in (FINISHED, PAUSED)
        rig.runner.check()
        rig.tidy()
    heard = {}
    for tag, text, n_tokens, _, finish, logprobs, *_ in rig.outbox.drain():
        before = heard.get(tag, ("", 0, 0, []))
        entries = () if logprobs is None else iter_unpack("if", logprobs[1])
        pairs = [(token, pytest.approx(value, abs=1e-3)) for token, value in entries]
        heard[tag] = (before[0] + text, before[1] + n_tokens, finish, before[3] + pairs)
    return heard, {sequence.tag: list(sequence.tokens()) for sequence in sequences}


def nothing(*_):
    return []


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


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]{12,20}$"}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
OPTIONS = {"max_tokens": 60, "sampling": {"temperature": 1.0, "seed": 3}}


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


class Watched:
    """A matcher that notes what it is told, and fails behind tokens that are named."""

    def __init__(self, matcher, *, fails=None, raises=None, pause=0.0):
        self.matcher, self.fails, self.raises, self.pause = matcher, fails, raises, pause
        self.walked, self.rolled_back, self.made = [], [], 0
        self.copies, self.failed = [], False

    def deep_copy(self):
        copy = Watched(self.matcher.deep_copy(), fails=self.fails, raises=self.raises, pause=self.pause)
        self.copies.append(copy)
        return copy

    def consume_token(self, token):
        self.walked.append(token)
        if self.fails is not None and self.fails(self.walked):
            if self.raises is not None:
                raise self.raises
            self.failed = True
            return False
        return self.matcher.consume_token(token)

    def consume_tokens(self, tokens):
        return all(self.consume_token(token) for token in tokens)

    def rollback(self, n):
        assert not self.failed
        self.rolled_back.append(self.walked[-n:])
        del self.walked[-n:]
        return self.matcher.rollback(n)

    def is_stopped(self):
        return self.failed or self.matcher.is_stopped()

    def is_error(self):
        return self.failed or self.matcher.is_error()

    def get_error(self):
        return "it failed here" if self.failed else self.matcher.get_error()

    def unsafe_compute_mask_ptr(self, pointer, n_bytes):
        if self.pause:
            threading.Event().wait(self.pause)
        self.matcher.unsafe_compute_mask_ptr(pointer, n_bytes)


def watched(into, **options):
    def dress(matcher):
        into.append(Watched(matcher, **options))
        return into[-1]

    return dress


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


# -- how many --

TIMES = st.lists(st.floats(0, 1), min_size=40, max_size=40).map(
    lambda more: [1 + sum(more[: i + 1]) for i in range(len(more))]
)
CHANCES = st.lists(st.floats(0.015625, 1, width=32), min_size=1, max_size=3).map(
    lambda some: [float(c) for c in sorted(some, reverse=True)]
)
WEIGHTS = st.tuples(st.floats(0.1, 1), st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0, 3.0]))


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


def test_a_plain_rig_says_the_same(tiny_model):
    """One without a drafter: what is compared above with is no other thing than that."""
    every = works(["[a-f]{9}", PERSON], 4)
    rig = Masked(tiny_model("tiny-llama"))
    expected = told(rig, every, nothing)
    plain = Rig(tiny_model("tiny-llama"))
    thread = threading.Thread(target=plain.runner.masker.run)
    thread.start()
    sequences = [
        plain.sequence(prompt, tag, constraint=Constraint(rig.matcher(grammar), plain.vocab.n_tokens), **options)
        for grammar, prompt, tag, options in every
    ]
    texts = plain.run(*sequences)
    plain.runner.masker.close()
    thread.join()
    assert texts == {tag: said[:3] for tag, said in expected[0].items()}
    for one in (plain, rig):
        one.close()
