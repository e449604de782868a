"""What steps make of drafts: whatever is drafted, all that is told is what it would be without."""

from __future__ import annotations

import random
from itertools import pairwise
from struct import iter_unpack

import pytest

from core.inside import draft_by, was_rolled_back
from core.test_adapters import LLAMAS, adapter_of
from core.test_runner import Rig
from llamafast._core.step import FINISHED, NO_ROOM, PAUSED, SAVE_DUE

# name: the model and its settings
KINDS = {
    "unified": ("tiny-llama", {}),
    "partitioned": ("tiny-llama", {"kv_unified": False}),
    "window": ("tiny-gemma3-swa", {"swa_full": False}),
    "window, full": ("tiny-gemma3-swa", {"swa_full": True}),
    "window, partitioned": ("tiny-gemma3-swa", {"swa_full": False, "kv_unified": False, "flash_attn_type": 1}),
    "experts": ("tiny-qwen3moe", {}),
    "hybrid": ("tiny-qwen35", {"n_rs_seq": 4}),
    "flash": ("tiny-llama", {"flash_attn_type": 1}),
    "q8_0": ("tiny-gemma3-swa", {"flash_attn_type": 1, "type_k": 8, "type_v": 8}),
}
SAMPLINGS = [
    {},
    {"temperature": 1.0, "top_p": 0.9, "seed": 5},
    {"temperature": 1.0, "min_p": 0.05, "seed": 6},
    {"temperature": 1.0, "xtc_probability": 0.5, "seed": 7},
    {"temperature": 1.0, "mirostat": 2, "seed": 8},
    {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.3, "seed": 9},
    {"temperature": 0.0, "dry_multiplier": 0.8},
    {"temperature": 1.0, "logit_bias": ((44, 4.0),), "seed": 10},
]


class Drafting(Rig):
    """A Rig with a drafter whose source may be scripted."""

    def __init__(self, path, *, most=8, drafts_for=64, **settings):
        super().__init__(path, drafts={"most": most, "most_sequences": drafts_for}, **settings)

    def script(self, source):
        self.source = source
        draft_by(self.drafter, source)

    def check_memory(self, sequences):
        self.runner.check()
        for sequence in sequences:
            assert sequence.finished or sequence.n_past < sequence.n_tokens


class Replay:
    """Knows what comes, and drafts it right, wrong, at random, or right up to some place."""

    def __init__(self, truths, how):
        self.truths, self.how = truths, how
        self.chance = random.Random(3)

    def __call__(self, tag, tokens, most):
        right = self.truths[tag][len(tokens) : len(tokens) + most]
        wrong = [33 + (token + 1) % 200 for token in right]
        if self.how == "right":
            return right
        if self.how == "wrong":
            return wrong
        if self.how == "long":
            return [*right, *range(40, 240)]
        if self.how == "random":
            return [self.chance.choice(pair) for pair in zip(right, wrong, strict=True)][: self.chance.randrange(0, 9)]
        return [*right[: self.how], *wrong[self.how :]]


def works(n, options=None):
    """So many prompts of different lengths, tags, ways to sample and ends."""
    every = []
    for tag in range(n):
        prompt = [33 + (7 * tag + 13 * k * (tag + 1)) % 200 for k in range(3 + 17 * tag % 90)]
        own = {"sampling": SAMPLINGS[tag % len(SAMPLINGS)], "max_tokens": 20 + tag % 7, "min_tokens": tag % 3}
        every.append((prompt, tag, own | {"top_logprobs": 2 if tag % 2 else -1} | (options or {})))
    return every


def told(rig, every, *, late=0):
    """Run them, ``late`` of them from the third step on; what was told of each, and its tokens."""
    sequences = [rig.sequence(prompt, tag, **options) for prompt, tag, options in every]
    for sequence in sequences[: len(sequences) - late]:
        rig.runner.add(sequence)
    heard, n_steps = {}, 0
    while rig.runner.n_running or n_steps < 3:
        assert rig.runner.run(1) in (FINISHED, PAUSED)
        n_steps += 1
        rig.runner.check()
        rig.tidy()
        if n_steps == 3:
            for sequence in sequences[len(sequences) - late :]:
                rig.runner.add(sequence)
    for tag, text, n_tokens, _, finish, logprobs, *_ in rig.outbox.drain():
        before = heard.get(tag, ("", 0, 0, []))
        pairs = [] if logprobs is None else [token for token, _ in iter_unpack("if", logprobs[1])]
        heard[tag] = (before[0] + text, before[1] + n_tokens, finish, before[3] + pairs)
    return heard, {sequence.tag: list(sequence.tokens()) for sequence in sequences}, n_steps


def told_apart(rig, n):
    """What ``told`` says of so many, and the tags of those to whom a few latecomers more or less make a difference:
    sums of attention follow the order of cells, of which a window hands out again what it has passed
    (docs/decisions/25), so that two tokens as likely to the last bits change places."""
    first = told(rig, works(n), late=n // 3)
    others = [told(rig, works(n), late=late)[0] for late in {0, n // 4, n // 2, 2 * n // 3, 3 * n // 4}]
    apart = {tag for tag, heard in first[0].items() if any(other[tag] != heard for other in others)}
    assert len(apart) <= n / 8
    return *first, apart


@pytest.fixture(scope="module")
def rigs(tiny_model):
    """By the name of a kind: one that drafts, and what everybody is told by one that does not. Steps are not cut by the
    clock: else one that was held up leaves rows of prompts for more of them."""
    made = {}

    def rig_of(kind):
        if kind not in made:
            name, settings = KINDS[kind]
            settings = {"target_itl": 100.0} | settings
            plain = Rig(tiny_model(name), **settings)
            made[kind] = (
                Drafting(tiny_model(name), **settings),
                {n: told_apart(plain, n) for n in (1, 4, 16)},
            )
            plain.close()
        return made[kind]

    yield rig_of
    for rig, _ in made.values():
        rig.close()


@pytest.mark.parametrize("how", ["right", "wrong", "random", 2, "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_drafted_all_that_is_told_stays(rigs, kind, how):
    rig, plain = rigs(kind)
    for n, (expected, tokens, n_steps, apart) in plain.items():
        rig.script(Replay(tokens, how))
        before = rig.runner.counts()
        heard, came, drafted_steps = told(rig, works(n), late=n // 3)
        assert heard.keys() == expected.keys()
        for tag in heard.keys() - apart:
            assert heard[tag] == expected[tag]
            assert came[tag] == tokens[tag]
        counts = rig.runner.counts()
        n_drafted, n_accepted = (counts[f"draft_tokens_{key}"] - before[f"draft_tokens_{key}"]
                                 for key in ("verified", "accepted"))  # fmt: skip
        assert n_drafted > 0
        if how == "right":
            assert n_accepted == n_drafted or (apart and n_accepted > 0.8 * n_drafted)
            assert drafted_steps < 0.6 * n_steps
        elif how == "wrong":
            assert n_accepted == 0


def solo(rig, prompt, **options):
    """Text and tokens of one that runs alone, without drafts."""
    rig.script(lambda *_: [])
    sequence = rig.sequence(prompt, 1, **options)
    return rig.run(sequence)[1], list(sequence.tokens())


def until_rolled_back(rig, sequence):
    """Let one run with drafts that are wrong until rows of it were taken back."""
    rig.runner.add(sequence)
    while not was_rolled_back(sequence):
        assert rig.runner.run(1) == PAUSED


PROMPT = [33 + 5 * k % 190 for k in range(40)]


@pytest.mark.parametrize("steps_between", [0, 1])
def test_who_follows_one_that_was_just_rolled_back_computes_what_that_would_give_it_wrong(rigs, steps_between):
    """llama.cpp copies a recurrent state as it was before rows were taken back: the next logits are off by 10."""
    rig, _ = rigs("hybrid")
    text, tokens = solo(rig, PROMPT, max_tokens=24)
    rig.script(Replay({1: tokens, 2: []}, "wrong"))
    first = rig.sequence(PROMPT, 1, max_tokens=24)
    until_rolled_back(rig, first)
    for _ in range(4):
        rig.runner.run(1)
    follower = rig.sequence(list(first.tokens()), 2, max_tokens=24 - first.n_tokens + len(PROMPT))
    for _ in range(steps_between):
        rig.script(lambda *_: [])
        rig.runner.run(1)
    before = rig.collect().get(1, ("", 0, 0))
    heard = rig.run(follower)
    assert before[0] + heard[1][0] == text[0]
    assert list(follower.tokens()) == tokens
    assert text[0].endswith(heard[2][0])


@pytest.mark.parametrize("start", [0, 20])
@pytest.mark.parametrize("kind", ["hybrid", "window", "unified"])
def test_a_state_that_is_saved_behind_a_rollback_is_that_of_its_tokens(rigs, kind, start):
    rig, _ = rigs(kind)
    _, tokens = solo(rig, PROMPT, max_tokens=24)
    saver = rig.sequence(PROMPT, 1, max_tokens=24)
    rig.script(Replay({1: tokens, 2: tokens}, "wrong"))
    rig.runner.add(saver)
    if start:
        saver.save_at = start
        while saver.n_past < start:
            rig.runner.run(1)
        parts = [(0, start, rig.runner.save(saver, 0, start))]
        assert saver.n_past == start or kind == "unified"
        saver.save_at = 2**31 - 1
    else:
        parts = []
    while saver.n_past < 50:
        rig.runner.run(1)
    assert was_rolled_back(saver) == (kind == "hybrid")
    parts.append((start, saver.n_past, rig.runner.save(saver, start, saver.n_past)))
    said = saver.tokens()
    rig.runner.remove(saver)
    other = rig.sequence(said, 2, max_tokens=10)
    rig.runner.add(other, parts[-1][1])
    for first, stop, saved in parts:
        assert rig.runner.restore(other, saved, first, stop)
    while not other.finished:
        rig.runner.run(1)
    rig.tidy()
    rig.collect()
    assert list(other.tokens())[: len(tokens)] == tokens[: other.n_tokens]


@pytest.mark.parametrize("kind", ["hybrid", "window", "unified"])
def test_one_that_was_rolled_back_and_removed_goes_on_where_it_was(rigs, kind):
    rig, _ = rigs(kind)
    text, tokens = solo(rig, PROMPT, max_tokens=24)
    rig.script(Replay({1: tokens}, "wrong"))
    sequence = rig.sequence(PROMPT, 1, max_tokens=24)
    rig.runner.add(sequence)
    for _ in range(9):
        rig.runner.run(1)
    rig.runner.remove(sequence)
    before = rig.collect()[1]
    after = rig.run(sequence)[1]
    assert before[0] + after[0] == text[0]
    assert list(sequence.tokens()) == tokens


@pytest.mark.parametrize("kind", ["hybrid", "window", "window, full"])
def test_no_draft_goes_past_where_a_state_is_to_be_saved(rigs, kind):
    rig, _ = rigs(kind)
    _, tokens = solo(rig, PROMPT, max_tokens=40, ignore_eos=True)
    rig.script(Replay({1: tokens}, "right"))
    sequence = rig.sequence(PROMPT, 1, max_tokens=40, ignore_eos=True)
    rig.runner.add(sequence)
    sequence.save_at = 70
    while (status := rig.runner.run(1)) == PAUSED:
        pass
    assert (status, sequence.n_past, was_rolled_back(sequence)) == (SAVE_DUE, 70, False)
    rig.runner.clear()
    rig.collect()


def test_nobody_makes_room_for_drafts(tiny_model):
    """Cells for both as long as neither drafts: the shorter one ends just in time."""
    rig = Drafting(tiny_model("tiny-llama"), n_ctx=256, n_seq_max=4)
    works = [([40 + k % 9 for k in range(118)], 1, 11), ([90 + k % 7 for k in range(118)], 2, 60)]
    expected, tokens = {}, {}
    for prompt, tag, max_tokens in works:
        told, tokens[tag] = solo(rig, prompt, max_tokens=max_tokens)
        expected[tag] = told
    rig.script(Replay(tokens, "wrong"))
    heard = rig.run(*(rig.sequence(prompt, tag, max_tokens=max_tokens) for prompt, tag, max_tokens in works))
    assert heard == expected
    assert rig.runner.counts()["draft_dropped"] > 0


def test_memory_that_is_full_without_drafts_is_reported_as_ever(tiny_model):
    rig = Drafting(tiny_model("tiny-llama"), n_ctx=256, n_seq_max=4)
    rig.script(lambda tag, tokens, most: [40] * most)
    for tag in (1, 2):
        rig.runner.add(rig.sequence([40 + tag] * 120, tag, max_tokens=100))
    while (status := rig.runner.run(1)) == PAUSED:
        rig.runner.check()
    assert status == NO_ROOM
    rig.runner.check()


ENDS = {
    "a stop string within a token": lambda text: {"stops": (text[6:7].encode(),)},
    "a stop string across tokens": lambda text: {"stops": (text[5:12].encode(),)},
    "a stop string that is shown": lambda text: {"stops": (text[5:12].encode(),), "keep_stop": True},
    "a length": lambda text: {"max_tokens": 7},
    "a length of one": lambda text: {"max_tokens": 1},
    "a length of two": lambda text: {"max_tokens": 2},
}


@pytest.mark.parametrize("how", ["right", "wrong", 3])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["unified", "hybrid"])
def test_an_end_inside_a_draft_is_an_end(rigs, kind, end, how):
    rig, _ = rigs(kind)
    prompt = [150, 160, 170, 180]
    (text, *_), tokens = solo(rig, prompt, max_tokens=30)
    options = {"max_tokens": 30} | ENDS[end](text)
    expected, ended = solo(rig, prompt, **options)
    rig.script(Replay({1: tokens}, how))
    sequence = rig.sequence(prompt, 1, **options)
    rig.runner.add(sequence)
    while not sequence.finished:
        rig.runner.run(1)
    assert sequence.n_past == len(ended) - 1
    rig.runner.check()
    rig.tidy()
    assert rig.collect()[1] == expected
    assert list(sequence.tokens()) == ended


def test_a_token_that_ends_comes_inside_a_draft(tiny_model):
    rig = Drafting(tiny_model("tiny-scripted"))
    trigger = rig.vocab.tokenize("<|s_text|>", add_special=False, parse_special=True)
    for options in ({}, {"ignore_eos": True, "max_tokens": 14}, {"min_tokens": 12, "max_tokens": 20}):
        expected, tokens = solo(rig, trigger, **options)
        for how in ("right", "wrong", "long"):
            rig.script(Replay({1: tokens}, how))
            assert rig.run(rig.sequence(trigger, 1, **options))[1] == expected


def test_nothing_is_drafted_for_who_wants_none(rigs):
    rig, _ = rigs("unified")
    asked = []
    rig.script(lambda tag, tokens, most: asked.append(tag) or [40] * most)
    rig.run(rig.sequence(PROMPT, 1, speculative=False), rig.sequence(PROMPT, 2))
    assert set(asked) == {2}


@pytest.mark.heavy
def test_random_drafts_leave_the_distribution_alone(rigs):
    """Chi-square of 20,000 pairs of a token and the next one, with drafts and without, of different seeds."""
    rig, _ = rigs("unified")
    chance = random.Random(4)
    counts = []
    for first_seed, source in (
        (1, lambda *_: []),
        (10_000, lambda tag, tokens, most: [chance.choice([40, 41, 42])] * most),
    ):
        rig.script(source)
        pairs = {}
        for round_ in range(16):
            sampling = {"temperature": 1.0, "logit_bias": tuple((token, 8.0) for token in range(40, 48))}
            sequences = [
                rig.sequence([60, 61], tag, max_tokens=84, sampling=sampling | {"seed": first_seed + 16 * round_ + tag})
                for tag in range(16)
            ]
            rig.run(*sequences)
            for sequence in sequences:
                tokens = list(sequence.tokens())[2:]
                for pair in pairwise(tokens):
                    pairs[pair] = pairs.get(pair, 0) + 1
        counts.append(pairs)
    without, with_drafts = counts
    assert sum(without.values()) > 20_000
    total = sum(without.values()), sum(with_drafts.values())
    frequent = [
        pair for pair in without.keys() | with_drafts.keys() if without.get(pair, 0) + with_drafts.get(pair, 0) >= 10
    ]
    assert len(frequent) > 40
    statistic = 0.0
    for pair in frequent:
        seen = without.get(pair, 0), with_drafts.get(pair, 0)
        for n, all_ in zip(seen, total, strict=True):
            expected = sum(seen) * all_ / sum(total)
            statistic += (n - expected) ** 2 / expected
    # tokens of one sequence hang together, pairs overlap: three deviations
    assert statistic < len(frequent) + 3 * (2 * len(frequent)) ** 0.5


def test_who_drafts_keeps_its_turn_where_memory_is_full(tiny_model):
    """Groups of adapters that cannot have a step together; and only what was decoded is counted."""
    grown = {}
    for drafts in (False, True):
        rig = Drafting(tiny_model("tiny-llama"), n_ctx=256, n_seq_max=4, bare=True, most=16)
        for group in (1, 2):
            rig.context.adapters.define(group, [(adapter_of(rig, LLAMAS[group - 1]), 1.0)])
        rig.script(lambda tag, tokens, most, drafts=drafts: [40] * most if drafts and tag == 1 else [])
        one = rig.sequence([40 + k % 9 for k in range(112)], 1, max_tokens=30, ignore_eos=True, group=1, salt=b"1")
        other = rig.sequence([90 + k % 7 for k in range(90)], 2, max_tokens=60, ignore_eos=True, group=2, salt=b"2")
        rig.runner.add(other)
        while other.n_tokens < other.n_prompt + 20:
            rig.runner.run(1)
        rig.runner.add(one)
        while rig.runner.run(1) == PAUSED:
            pass
        counts = rig.runner.counts()
        grown[drafts] = one.n_tokens, other.n_tokens
        decoded = sum(counts[f"draft_length_{n}"] for n in range(17))
        assert counts["draft_batches_verified"] == decoded
        assert (decoded > 0 < counts["draft_dropped"]) == drafts
        rig.runner.clear()
        rig.close()
    assert grown[True] == grown[False]
