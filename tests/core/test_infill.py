"""The stage for texts that are filled in, against llama.cpp's chain."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from benchmarks.llama_chain import Chain
from benchmarks.samplers import sampler_of
from llamafast._core.infill import Infill
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab

VIM = ("top_k", "top_p", "infill")
HISTORY = array("i", range(4000))


@pytest.fixture(scope="module")
def vocab(tiny_model):
    return Vocab(Model(str(tiny_model("tiny-llama")), n_gpu_layers=0))


def drawn(vocab, row, n=200, **parameters):
    """The tokens that are drawn at n positions."""
    sampler = sampler_of(len(row), infill=Infill(vocab), **{"samplers": VIM, "seed": 3} | parameters)
    return {sampler.pick(row.copy(), HISTORY[:i]) for i in range(n)}


def kept(vocab, row, **parameters):
    chain = Chain(len(row), vocab=vocab.llama_pointers[0], **{"samplers": VIM} | parameters)
    return set(np.flatnonzero(chain.probabilities(row) > 1e-9).tolist())


@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_it_keeps_what_llama_cpp_keeps(vocab, spread):
    kinds = set()
    for seed in range(40):
        row = np.random.default_rng(seed).normal(0, spread, vocab.n_tokens).astype(np.float32)
        row[vocab.eog_tokens()] += seed % 5 - 3
        expected = kept(vocab, row, top_k=40, top_p=0.95)
        assert drawn(vocab, row, top_k=40, top_p=0.95) == expected
        kinds.add(min(2, len(expected)))
    assert len(kinds) > 1 or spread < 1


def test_an_end_that_is_likely_ends_the_text(vocab):
    row = np.full(vocab.n_tokens, -4, np.float32)
    row[50:53] = 3.0
    (end, *_) = vocab.eog_tokens()
    assert end not in drawn(vocab, row, top_k=40)
    row[end] = 2.0
    assert drawn(vocab, row, top_k=40) <= set(vocab.eog_tokens())


def test_an_end_that_is_ruled_out_is_not_written(vocab):
    """No token has a fifth of the probability, so the text would end."""
    flat = np.zeros(vocab.n_tokens, np.float32)
    flat[vocab.eog_tokens()] = -30.0
    assert drawn(vocab, flat, top_k=40) <= set(vocab.eog_tokens())
    flat[vocab.eog_tokens()] = -np.inf
    assert not drawn(vocab, flat, top_k=40) & set(vocab.eog_tokens())
    banned = [(end, -1e30) for end in vocab.eog_tokens()]
    assert not drawn(vocab, np.zeros(vocab.n_tokens, np.float32), top_k=40, logit_bias=banned) & set(vocab.eog_tokens())


def test_a_whole_vocabulary_is_not_compared_in_pairs(vocab):
    """Only the likeliest candidates are: the choice is the same."""
    row = np.random.default_rng(5).normal(0, 6, vocab.n_tokens).astype(np.float32)
    assert drawn(vocab, row, samplers=("infill",)) == drawn(vocab, row, samplers=("top_k", "infill"), top_k=128)


def test_it_needs_a_vocabulary():
    with pytest.raises(ValueError, match="needs a vocabulary"):
        sampler_of(10, samplers=VIM)
