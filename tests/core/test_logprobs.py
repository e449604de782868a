"""Log probabilities of a real (tiny) model against numpy, aligned with the text they belong to."""

from __future__ import annotations

import math
from struct import iter_unpack

import numpy as np
import pytest

from core.test_runner import Rig
from llamafast._core.step import FINISHED, PAUSED


@pytest.fixture(scope="module")
def rig(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    yield rig
    rig.close()


def tell(rig, *sequences, n_top, ranks=None):
    """{tag: (text, [token, logprob, top] of the prompt, the same of the output)}; into ``ranks`` go those of a prompt's
    tokens."""
    for sequence in sequences:
        rig.runner.add(sequence)
    told = {sequence.tag: ["", [], []] for sequence in sequences}
    while rig.runner.n_running:
        assert rig.runner.run(1) in (FINISHED, PAUSED)
        rig.tidy()
        for tag, text, _, _, _, logprobs, *_ in rig.outbox.drain():
            told[tag][0] += text
            if logprobs is not None:
                of_prompt, entries = logprobs
                pairs = list(iter_unpack("if", entries))
                width = 1 + n_top + of_prompt
                for at in range(0, len(pairs), width):
                    if of_prompt and ranks is not None:
                        ranks.append(pairs[at + 1 + n_top][0])
                    told[tag][1 if of_prompt else 2].append((*pairs[at], pairs[at + 1 : at + 1 + n_top]))
    return told


def test_every_token_has_its_own(rig):
    """Greedy under bias: the token is not the likeliest one, its log probability that of the model."""
    sampling = {"logit_bias": [(97, 50.0)], "temperature": 0.0}
    sequence = rig.sequence([40, 41], 1, max_tokens=6, sampling=sampling, top_logprobs=5)
    (_, _, tokens) = tell(rig, sequence, n_top=5)[1]
    assert [token for token, _, _ in tokens] == [97] * 6
    for _, logprob, top in tokens:
        logprobs = [p for _, p in top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert logprob <= logprobs[0] < 0
        assert len({token for token, _ in top}) == 5


@pytest.mark.parametrize("n_top", [0, 1, 20, 511])
def test_they_add_up_to_one(rig, n_top):
    (_, _, tokens) = tell(rig, rig.sequence([40, 41], 1, max_tokens=3, top_logprobs=n_top), n_top=n_top)[1]
    for token, logprob, top in tokens:
        assert [p for t, p in top if t == token] in ([], [logprob])
        mass = sum(math.exp(p) for _, p in top)
        assert mass == pytest.approx(1, abs=1e-2) if n_top == 511 else mass <= 1


def test_a_prompt_has_the_ones_that_generating_it_had(rig):
    """Also beside others, in chunks, and when its prefix is in memory already."""
    sequence = rig.sequence([50, 60], 1, max_tokens=40, ignore_eos=True, show_control=True, top_logprobs=2)
    (_, _, said) = tell(rig, sequence, n_top=2)[1]
    whole = list(sequence.tokens())
    assert len(said) == 40
    neighbour = rig.sequence(whole, 2, max_tokens=30)
    scored = rig.sequence(whole, 3, max_tokens=0, top_logprobs=2, score_prompt=True, salt=b"own")
    ranks = []
    told = tell(rig, neighbour, scored, n_top=2, ranks=ranks)
    text, prompt, output = told[3]
    assert (text, output, len(prompt)) == ("", [], 41)
    assert [token for token, _, _ in prompt] == whole[1:]
    for rank, (token, logprob, top) in zip(ranks, prompt, strict=True):
        assert (rank <= 2) == (token in [other for other, _ in top])
        assert rank > 2 or logprob == top[rank - 1][1]
    assert max(ranks) > 2
    for (token, logprob, top), (expected_token, expected, expected_top) in zip(prompt[1:], said, strict=True):
        assert token == expected_token
        assert logprob == pytest.approx(expected, abs=1e-3)
        assert [p for _, p in top] == pytest.approx([p for _, p in expected_top], abs=1e-3)


def test_what_a_stop_string_takes_away_is_not_told(rig):
    full = tell(rig, rig.sequence([40, 50], 1, max_tokens=24, top_logprobs=0), n_top=0)[1]
    pieces = [rig.vocab.piece(token) for token, _, _ in full[2]]
    assert b"".join(pieces).decode(errors="replace") == full[0]
    stop = full[0][6:9]
    text, _, tokens = tell(
        rig, rig.sequence([40, 50], 1, max_tokens=24, stops=(stop.encode(),), top_logprobs=0), n_top=0
    )[1]
    assert text == full[0][: full[0].index(stop)]
    kept = b"".join(pieces[: len(tokens)])
    assert kept.startswith(text.encode()) or "\ufffd" in text
    assert len(b"".join(pieces[: len(tokens) - 1])) < max(1, len(text.encode()))
    assert tokens == full[2][: len(tokens)]


def test_nobody_asked(rig):
    rig.runner.add(rig.sequence([40], 1, max_tokens=3))
    rig.runner.run(10)
    rig.tidy()
    assert {record[5] for record in rig.outbox.drain()} == {None}


@pytest.mark.parametrize(
    "options", [{"top_logprobs": -2}, {"score_prompt": True}, {"max_tokens": -1, "top_logprobs": 0}]
)
def test_nonsense(rig, options):
    with pytest.raises(ValueError, match=r"logprobs|max_tokens"):
        rig.sequence([40], 1, **options)


def test_a_row_of_a_large_vocabulary(tiny_model):
    rig = Rig(tiny_model("tiny-llama-v152k"), n_ctx=64, n_seq_max=1)
    (_, _, tokens) = tell(rig, rig.sequence([40, 41], 1, max_tokens=2, top_logprobs=20), n_top=20)[1]
    for _, _, top in tokens:
        assert len({token for token, _ in top}) == 20
        assert np.all(np.diff([p for _, p in top]) <= 0)
