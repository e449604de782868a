"""Graphs that are changed give what llama.cpp gives by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support import quantised

from benchmarks.ggml_products import lib
from core.inside import n_attention, n_direct, n_products
from core.test_logprobs import tell
from core.test_runner import Rig, prompts
from recipes.tiny_gguf import MODELS


def heavy_where_large(names):
    """The names of models; a large vocabulary takes long, and matters for logits alone."""
    return [pytest.param(name, marks=pytest.mark.heavy) if name == "tiny-llama-v152k" else name for name in names]


@pytest.fixture
def both(request):
    """A function that makes two Rigs: one as it is, one whose graphs are llama.cpp's own."""
    rigs = []

    def make(path, **settings):
        # steps are not cut by the clock: ggml's products of one row differ in their last bits from those of several
        rigs.extend(Rig(path, bare=bare, target_itl=100.0, **settings) for bare in (False, True))
        return rigs

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def ggml_multiplies():
    """Then logits are the same bit for bit."""
    best = lib.products_use(99)
    lib.products_use(0)
    yield
    lib.products_use(best)


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
@pytest.mark.usefixtures("ggml_multiplies")
def test_logits_of_every_architecture_and_memory(tiny_model, both, name, unified):
    ours, bare = both(tiny_model(name), kv_unified=unified)
    assert log_probabilities(ours) == log_probabilities(bare)
    assert n_direct(ours.context) > 20
    assert n_direct(bare.context) == 0


@pytest.mark.usefixtures("ggml_multiplies")
def test_micro_batches_that_give_logits_each_are_copied(tiny_model, both):
    ours, bare = both(tiny_model("tiny-llama"), n_ubatch=8)
    assert log_probabilities(ours, 16) == log_probabilities(bare, 16)
    assert 0 < n_direct(ours.context) < ours.runner.counts()["steps"]


@pytest.mark.usefixtures("ggml_multiplies")
def test_the_output_buffer_may_grow(tiny_model, both):
    """It is made for as many rows as there are sequences, and made anew for a prompt all of whose rows give logits."""
    ours, bare = both(tiny_model("tiny-llama"), n_seq_max=2)
    for rig in (ours, bare):
        rig.told = [
            tell(rig, rig.sequence([40, 41, 42], 1, top_logprobs=1), n_top=1),
            tell(rig, rig.sequence(range(40, 100), 2, top_logprobs=1, score_prompt=True, salt=b"own"), n_top=1),
            tell(rig, rig.sequence([43, 44, 45], 3, top_logprobs=1), n_top=1),
        ]
    assert ours.told == bare.told
    assert n_direct(ours.context) == ours.runner.counts()["steps"]


def scored(rig, *lengths):
    """Log probabilities of prompts that ask for logits of all their rows, computed together."""
    sequences = [
        rig.sequence(
            [(5 * k + 3 * n) % 300 + 40 for k in range(n)], n, max_tokens=0, top_logprobs=1, score_prompt=True,
            salt=bytes([n]),
        )
        for n in lengths
    ]  # fmt: skip
    return tell(rig, *sequences, n_top=1)


@pytest.mark.parametrize("turns", [[[24], [8], [24]], [[8], [40]], [[8], [8, 24], [8]]])
@pytest.mark.usefixtures("ggml_multiplies")
def test_a_graph_that_gave_all_logits_gives_some_of_them(tiny_model, both, turns):
    """llama.cpp uses the graph of a micro-batch again, when its output buffer may be another and its rows others."""
    ours, bare = both(tiny_model("tiny-llama"), n_ubatch=8, n_seq_max=2)
    for lengths in turns:
        assert scored(ours, *lengths) == scored(bare, *lengths)
    assert n_direct(ours.context) > 0


def check_scores(ours, bare, rel=5e-3):
    """Of many rows computed together; a product rounds what comes to it to 8 bits, and floats that differ in their last
    bits to others of these now and then. ggml's own ways to attend differ as much from each other."""
    tokens = [(7 * k) % 200 + 40 for k in range(120)]
    for rig in (ours, bare):
        rig.told = tell(
            rig,
            *(rig.sequence(tokens[tag:], tag, max_tokens=0, top_logprobs=3, score_prompt=True, salt=bytes([tag]))
              for tag in range(1, 9)),
            n_top=3,
        )  # fmt: skip
    for tag in range(1, 9):
        for (token, logprob, _), (same, expected, _) in zip(ours.told[tag][1], bare.told[tag][1], strict=True):
            assert token == same
            assert logprob == pytest.approx(expected, rel=rel, abs=0.02)


@pytest.mark.usefixtures("ggml_multiplies")
@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("name", heavy_where_large(sorted(MODELS.keys() - {"tiny-mamba"})))
def test_attention_of_every_architecture_and_memory(tiny_model, both, name, unified):
    ours, bare = both(tiny_model(name), kv_unified=unified, flash_attn_type=1)
    check_scores(ours, bare)
    assert n_attention(ours.context) > 0
    assert n_attention(bare.context) == 0


@pytest.mark.parametrize(
    "settings", [{"flash_attn_type": 1}, {"flash_attn_type": 0}, {"n_ubatch": 16}, {"n_threads": 2}]
)
@pytest.mark.parametrize("name", heavy_where_large(MODELS))
def test_products_of_every_architecture(tiny_model, both, name, settings):
    ours, bare = both(tiny_model(name), **settings)
    check_scores(ours, bare)
    assert n_products(ours.context) > 0
    assert n_products(bare.context) == 0


def taken_each_step(rig):
    """How many products of a step are ours, of prompts and of answers."""
    before, steps = n_products(rig.context), rig.runner.counts()["steps"]
    rig.run(rig.sequence([40] * 20, max_tokens=6, ignore_eos=True))
    return (n_products(rig.context) - before) / (rig.runner.counts()["steps"] - steps)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K_S", "IQ4_XS"])
def test_products_of_types_that_llama_cpp_writes(both, kind):
    """A layer's seven and that of the logits. All of them round what comes to them: in these models ggml's own ways to
    attend differ by 2.6 % from each other."""
    ours, bare = both(quantised.build(kind))
    check_scores(ours, bare, rel=2e-2)
    assert taken_each_step(ours) == 8
    assert taken_each_step(bare) == 0


def test_products_of_experts_with_biases(tiny_model, both):
    """gpt-oss: four of attention, one that chooses experts and three of theirs, in MXFP4, in each of two layers."""
    ours, bare = both(tiny_model("tiny-gpt-oss"))
    assert taken_each_step(ours) == 2 * 8 + 1
    assert taken_each_step(bare) == 0


SMALL_STACKS = """
import sys
sys.path.insert(0, "tests")
from core.inside import n_attention
from core.test_runner import Rig

rig = Rig(sys.argv[1], flash_attn_type=1, n_threads=2, n_threads_batch=2)
assert rig.run(rig.sequence([40] * 100, max_tokens=8))[1][1] == 8
assert n_attention(rig.context) > 0
"""


def test_threads_with_small_stacks_compute_attention(tiny_model):
    """musl's have 128 KB."""
    command = [sys.executable, "-c", SMALL_STACKS, str(tiny_model("tiny-llama"))]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_STACKSIZE": "64k"}
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 0
