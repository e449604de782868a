"""Weights are laid out for this CPU where it can compute with that."""

from __future__ import annotations

from core.test_runner import Rig
from llamafast._core.model import Model


def test_a_model_in_16_bits_keeps_the_layouts(minilm):
    assert Model(str(minilm)).use_extra_bufts


def test_a_quantised_model_computes_a_prompt(smollm2):
    rig = Rig(smollm2, n_ctx=256)
    prompt = rig.vocab.tokenize("The capital of France is", add_special=True, parse_special=False)
    text, *_ = rig.run(rig.sequence(prompt, max_tokens=4))[1]
    assert " Paris" in text
    rig.close()
