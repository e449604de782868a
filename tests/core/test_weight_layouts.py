"""Weights are laid out for this CPU where that gains."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from core.test_runner import Rig
from llamafast._core.model import Model, layouts_work
from llamafast._core.simd import NAMES, instruction_set

SAYS = "import sys; from llamafast._core.model import Model; print(Model(sys.argv[1]).use_extra_bufts)"


def says(code: str, *arguments: object, simd: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | {"LLAMAFAST_SIMD": simd}, capture_output=True, text=True, check=False
    )


def test_a_model_in_16_bits_stays_as_it_is_where_its_products_are_ours(minilm):
    assert Model(str(minilm)).use_extra_bufts == (instruction_set() == "baseline")


def test_products_of_ggmls_have_its_layouts_where_they_work(minilm, smollm2):
    assert says(SAYS, minilm, simd="baseline").stdout.strip() == "True"
    assert says(SAYS, smollm2, simd="baseline").stdout.strip() == str(layouts_work())


def test_a_quantised_model_computes_a_prompt(smollm2):
    rig = Rig(smollm2, n_ctx=256)
    prompt = rig.vocab.tokenize("The capital of France is", add_special=True, parse_special=False)
    text, *_ = rig.run(rig.sequence(prompt, max_tokens=4))[1]
    assert " Paris" in text
    rig.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_instruction_sets_can_be_limited(name):
    told = says("from llamafast._core.simd import instruction_set as i; print(i())", simd=name)
    assert told.stdout.strip() == NAMES[min(NAMES.index(name), NAMES.index(instruction_set()))]


def test_an_unknown_instruction_set_is_named():
    told = says("import llamafast._core.simd", simd="avx3")
    assert told.returncode != 0
    assert "LLAMAFAST_SIMD=avx3: expected baseline, avx2" in told.stderr
