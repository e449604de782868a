"""Logits that are not copied are those that llama.cpp would have copied."""

from __future__ import annotations

import pytest
from support.tiny_gguf import MODELS

from core.test_logprobs import tell
from core.test_runner import Rig, prompts


@pytest.fixture
def both(request):
    """A function that makes two Rigs: logits direct, logits copied."""
    rigs = []

    def make(path, **settings):
        rigs.extend(Rig(path, copy_logits=copied, **settings) for copied in (False, True))
        return rigs

    yield make
    for rig in rigs:
        rig.close()


def log_probabilities(rig, n=9):
    """Of what sequences say that come and go, all of the prompt too for two of them."""
    sampling = {"temperature": 0.9, "top_p": 0.95, "seed": 3}
    sequences = [
        rig.sequence(
            prompt, tag, max_tokens=5 + 3 * tag, ignore_eos=True, show_control=True, sampling=sampling, top_logprobs=3,
            score_prompt=tag in (2, 3), salt=str(tag).encode() if tag in (2, 3) else b"",
        )
        for tag, prompt in enumerate(prompts(n))
    ]  # fmt: skip
    return tell(rig, *sequences, n_top=3)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_and_memory(tiny_model, both, name, unified):
    direct, copied = both(tiny_model(name), kv_unified=unified)
    assert log_probabilities(direct) == log_probabilities(copied)
    assert direct.context.n_direct > 20
    assert copied.context.n_direct == 0


def test_micro_batches_that_give_logits_each_are_copied(tiny_model, both):
    direct, copied = both(tiny_model("tiny-llama"), n_ubatch=8)
    assert log_probabilities(direct, 16) == log_probabilities(copied, 16)
    assert 0 < direct.context.n_direct < direct.runner.counts()["steps"]


def test_the_output_buffer_may_grow(tiny_model, both):
    """It is made for as many rows as there are sequences, and made anew for a prompt all of whose rows give logits."""
    direct, copied = both(tiny_model("tiny-llama"), n_seq_max=2)
    for rig in (direct, copied):
        rig.told = [
            tell(rig, rig.sequence([40, 41, 42], 1, top_logprobs=1), n_top=1),
            tell(rig, rig.sequence(range(40, 100), 2, top_logprobs=1, score_prompt=True, salt=b"own"), n_top=1),
            tell(rig, rig.sequence([43, 44, 45], 3, top_logprobs=1), n_top=1),
        ]
    assert direct.told == copied.told
    assert direct.context.n_direct == direct.runner.counts()["steps"]
