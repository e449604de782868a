"""Products and attention of ours on a real model: what it says, and that nobody else's rows show in it."""

from __future__ import annotations

from math import exp
from pathlib import Path

import pytest

from core.inside import n_attention, n_products
from core.test_logprobs import tell
from core.test_runner import Rig

PROSE = (Path(__file__).parents[1] / "support" / "prose.txt").read_text()
N = 16


def prompts(rig):
    """Passages of the prose, of different lengths."""
    tokens = rig.vocab.tokenize(PROSE, add_special=True, parse_special=False)
    return [tokens[start : start + 60 + start] for start in range(0, 2 * N, 2)]


def told_of(rig, prompt, tag, **settings):
    sampling = {"temperature": 0}
    settings = {"max_tokens": 12, "ignore_eos": True, "salt": bytes([tag])} | settings
    return rig.sequence(prompt, tag, sampling=sampling, top_logprobs=3, **settings)


@pytest.fixture(params=["smollm2", pytest.param("gemma3", marks=pytest.mark.models)])
def real_model(request):
    """Q4_1 and Q8_0; and Q4_K, Q5_0, Q6_K and Q8_0 with sliding windows."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        # caches of Q8_0
        {"type_k": 8, "type_v": 8},
        pytest.param({"n_ubatch": 32}, marks=pytest.mark.heavy),
        pytest.param({"n_threads": 2, "n_threads_batch": 2}, marks=pytest.mark.heavy),
    ],
)
def test_sixteen_together_say_what_each_says_alone(real_model, settings):
    """Bit for bit: the same log probabilities, whatever else is in the batch and wherever a prompt is cut. That holds
    as long as a sequence's tokens lie in memory in order, which they may not once somebody has left: nobody leaves
    before all have said eight."""
    rig = Rig(real_model, n_ctx=4096, n_seq_max=N, flash_attn_type=1, n_batch=2048, target_itl=100.0, **settings)
    together = tell(rig, *(told_of(rig, prompt, tag) for tag, prompt in enumerate(prompts(rig))), n_top=3)
    n_compared = 0
    for tag, prompt in enumerate(prompts(rig)):
        rig.context.clear()
        (_, _, alone) = tell(rig, told_of(rig, prompt, tag, max_tokens=8), n_top=3)[tag]
        # an end that is ignored has no text, and so no log probability: of eight tokens there may be fewer
        assert alone == together[tag][2][: len(alone)]
        n_compared += len(alone)
    assert n_compared > 6 * N
    assert n_attention(rig.context) > 0
    rig.close()


def perplexity(path, *, bare):
    rig = Rig(path, n_ctx=1024, n_batch=512, flash_attn_type=1, bare=bare)
    tokens = rig.vocab.tokenize(PROSE, add_special=True, parse_special=False)
    told = tell(rig, told_of(rig, tokens, 1, max_tokens=0, score_prompt=True), n_top=3)[1][1]
    logprobs = [logprob for _, logprob, _ in told]
    taken = n_products(rig.context)
    rig.close()
    assert (taken == 0) == bare
    return exp(-sum(logprobs) / len(logprobs))


@pytest.mark.heavy
def test_perplexity_is_ggmls(real_model):
    """Over so few tokens ggml's own differ by half a percent with and without flash attention."""
    assert perplexity(real_model, bare=False) == pytest.approx(perplexity(real_model, bare=True), rel=1e-2)
