"""The cells of what a sliding window has left behind are others' to take: what is kept must not have been among it."""

from __future__ import annotations

from itertools import count
from struct import iter_unpack

import pytest

from core.inside import n_cached
from core.test_drafts import Drafting

WINDOW = 64
# Roundings of products in steps of other sizes differ by about 2e-4, a token that is missing by 0.08 and more.
TOLERANCE = 0.01


def text_of(n, step=7):
    return [33 + step * i % 300 for i in range(n)]


def log_probabilities(rig, sequence):
    """Of the tokens of its answer, which it stays to lend when it has ended."""
    rig.runner.add(sequence)
    told = []
    while not any(one is sequence for one in rig.runner.finished()):
        rig.runner.run(1)
        for tag, _, _, _, _, logprobs, *_ in rig.outbox.drain():
            if tag == sequence.tag and logprobs is not None:
                told += [probability for _, probability in iter_unpack("if", logprobs[1])]
    return told


@pytest.mark.parametrize("n_past", [WINDOW - 1, WINDOW, WINDOW + 1])
def test_what_is_lent_is_all_there(tiny_model, n_past):
    """llama.cpp gives the first cell of a sequence that fills its window to whoever comes round to it."""
    rig = Drafting(tiny_model("tiny-gemma3-swa"), swa_full=False, n_seq_max=3)
    rig.script(lambda *_: [])
    lender = text_of(n_past - 3)
    borrower = [*lender[:40], *range(50, 60)]
    alone = rig.sequence(borrower, 1, max_tokens=8, top_logprobs=1)
    expected = log_probabilities(rig, alone)
    rig.runner.remove(alone)
    sequences = [
        rig.sequence(lender, 2, max_tokens=4),
        # goes round the cells of the window
        rig.sequence(text_of(700, 11), 3, max_tokens=2),
        rig.sequence(borrower, 4, max_tokens=8, top_logprobs=1),
    ]
    for sequence in sequences:
        came = log_probabilities(rig, sequence)
    assert sequences[0].n_past == n_past
    assert came == pytest.approx(expected, abs=TOLERANCE)
    assert n_cached(sequences[2]) == (40 if n_past < WINDOW else 0)
    rig.close()


def test_drafts_that_are_taken_back_cost_nothing_that_was_before(tiny_model):
    """Behind drafts the window is further on: prompts in the next micro-batch would take what it needs again."""
    rig = Drafting(tiny_model("tiny-gemma3-swa"), swa_full=False, n_seq_max=3, n_ubatch=16, prefill_chunk=32)
    rig.script(lambda *_: [])
    tags = count(1)
    alone = rig.sequence(text_of(100), next(tags), max_tokens=60, top_logprobs=1)
    expected = log_probabilities(rig, alone)
    rig.runner.remove(alone)
    rig.script(lambda tag, tokens, most: [34 + len(tokens) % 200] * most)
    drafting = rig.sequence(text_of(100), next(tags), max_tokens=60, top_logprobs=1)
    rig.runner.add(rig.sequence(text_of(1500, 11), next(tags), max_tokens=2))
    before = rig.runner.counts()["draft_tokens_verified"]
    came = log_probabilities(rig, drafting)
    assert rig.runner.counts()["draft_tokens_verified"] > before
    assert came == pytest.approx(expected, abs=TOLERANCE)
    rig.close()
