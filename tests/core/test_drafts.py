"""What steps make of drafts: whatever is drafted, all that is told is what it would be without."""

from __future__ import annotations

import random
from array import array
from struct import iter_unpack

import pytest

from core.inside import draft_by, last_position, n_drafted, was_rolled_back
from core.test_runner import Rig
from llamafast._core.drafter import Drafter
from llamafast._core.step import FINISHED, NO_ROOM, PAUSED, SAVE_DUE

# name: the model and its settings
KINDS = {
    "unified": ("tiny-llama", {}),
    "partitioned": ("tiny-llama", {"kv_unified": False}),
    "window": ("tiny-gemma3-swa", {"swa_full": False}),
    "window, full": ("tiny-gemma3-swa", {"swa_full": True}),
    "window, partitioned": ("tiny-gemma3-swa", {"swa_full": False, "kv_unified": False}),
    "experts": ("tiny-qwen3moe", {}),
    "hybrid": ("tiny-qwen35", {"n_rs_seq": 4}),
    "hybrid, partitioned": ("tiny-qwen35", {"n_rs_seq": 4, "kv_unified": False}),
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

    def __init__(self, path, *, most=8, **settings):
        super().__init__(path, drafts={"most": most}, **settings)

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
    for tag, text, n_tokens, _, finish, logprobs in rig.outbox.drain():
        before = heard.get(tag, ("", 0, 0, []))
        pairs = [] if logprobs is None else [token for token, _ in iter_unpack("if", logprobs[1])]
        heard[tag] = (before[0] + text, before[1] + n_tokens, finish, before[3] + pairs)
    return heard, {sequence.tag: list(sequence.tokens()) for sequence in sequences}, n_steps


@pytest.fixture(scope="module")
def rigs(tiny_model):
    """By the name of a kind: one that drafts, and what everybody is told by one that does not."""
    made = {}

    def rig_of(kind):
        if kind not in made:
            name, settings = KINDS[kind]
            plain = Rig(tiny_model(name), **settings)
            made[kind] = Drafting(tiny_model(name), **settings), {n: told(plain, works(n), late=n // 3) for n in (1, 4, 16)}
            plain.close()
        return made[kind]

    yield rig_of
    for rig, _ in made.values():
        rig.close()


@pytest.mark.parametrize("how", ["right", "wrong", "random", 2, "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_drafted_all_that_is_told_stays(rigs, kind, how):
    rig, plain = rigs(kind)
    for n, (expected, tokens, n_steps) in plain.items():
        rig.script(Replay(tokens, how))
        before = rig.runner.counts()
        heard, came, drafted_steps = told(rig, works(n), late=n // 3)
        assert heard == expected
        assert came == tokens
        counts = rig.runner.counts()
        n_drafted, n_accepted = (counts[f"draft_tokens_{key}"] - before[f"draft_tokens_{key}"]
                                 for key in ("verified", "accepted"))  # fmt: skip
        assert n_drafted > 0
        if how == "right":
            assert n_accepted == n_drafted
            assert drafted_steps < 0.6 * n_steps
        elif how == "wrong":
            assert n_accepted == 0
