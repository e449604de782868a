"""Low-rank adapters: a row with one is as of a model with the merged weights, whoever else is in its batch."""

from __future__ import annotations

import gc
import shutil

import numpy as np
import pytest

from core.inside import n_adapter_changes
from core.test_logprobs import tell
from core.test_runner import Rig
from llamafast._core.adapters import MAX_GROUPS, Adapter
from llamafast._core.gguf import Gguf
from llamafast._core.model import Model
from llamafast._core.step import FINISHED, PAUSED
from llamafast.errors import ModelLoadError
from recipes import tiny_lora

PROMPT = [(7 * k) % 300 + 33 for k in range(40)]
OF = {"tiny-llama": "lora-tiny-llama", "tiny-qwen3moe": "lora-tiny-qwen3moe", "tiny-qwen35": "lora-tiny-qwen35",
      "tiny-gemma3-swa": "lora-tiny-gemma3"}  # fmt: skip


def merged(model, name, scale, path):
    """A copy of a model to whose weights an adapter was added."""
    shutil.copyfile(model, path)
    tensors = Gguf(str(model)).tensors()
    with path.open("r+b") as file:
        for tensor, change in tiny_lora.changes(tiny_lora.LORAS[name], scale).items():
            assert tensors[tensor].type == "f32"
            file.seek(tensors[tensor].begin)
            weights = np.frombuffer(file.read(tensors[tensor].size), np.float32) + change.ravel()
            file.seek(tensors[tensor].begin)
            file.write(weights.astype(np.float32).tobytes())
    return path


def adapter_of(rig, name):
    return Adapter(rig.model, str(tiny_lora.build(name)), tiny_lora.LORAS[name].alpha)


def sequence(rig, tag=1, prompt=PROMPT, group=0, max_tokens=12, **options):
    fixed = {"ignore_eos": True, "show_control": True, "top_logprobs": 3, "sampling": {"temperature": 0}}
    return rig.sequence(prompt, tag, max_tokens=max_tokens, group=group, salt=bytes([group]), **fixed, **options)


def said(rig, **options):
    return tell(rig, sequence(rig, **options), n_top=3)[1][2]


def apart(told, expected):
    """How far log probabilities of the same tokens are."""
    assert [token for token, _, _ in told] == [token for token, _, _ in expected]
    return max(abs(one[1] - other[1]) for one, other in zip(told, expected, strict=True))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("name", "scale"), [("", 1.0), ("-2", 0.5), ("-3", -0.75)])
def test_it_is_as_if_the_weights_were_merged(tiny_model, tmp_path, name, scale, bare):
    model, name = tiny_model("tiny-llama"), f"lora-tiny-llama{name}"
    whole = Rig(merged(model, name, scale, tmp_path / "merged.gguf"), flash_attn_type=1, bare=bare)
    rig = Rig(model, flash_attn_type=1, bare=bare)
    without = said(rig)
    rig.context.adapters.define(1, [(adapter_of(rig, name), scale)])
    # where ggml multiplies it rounds activations to halves
    assert apart(said(rig, group=1), said(whole)) < (2e-2 if bare else 1e-3)
    assert said(rig) == without
    whole.close()
    rig.close()


@pytest.mark.parametrize("model", OF)
def test_of_every_kind_of_model(tiny_model, tmp_path, model):
    whole = Rig(merged(tiny_model(model), OF[model], 1.0, tmp_path / "merged.gguf"), n_seq_max=4, flash_attn_type=1)
    rig = Rig(tiny_model(model), n_seq_max=4, flash_attn_type=1)
    rig.context.adapters.define(1, [(adapter_of(rig, OF[model]), 1.0)])
    told = said(rig, group=1)
    assert apart(told, said(whole)) < 1e-3
    assert told != said(rig)
    whole.close()
    rig.close()


def test_two_at_once_add_up(tiny_model, tmp_path):
    model = tiny_model("tiny-llama")
    once = merged(model, "lora-tiny-llama", 0.5, tmp_path / "once.gguf")
    whole = Rig(merged(once, "lora-tiny-llama-2", 0.25, tmp_path / "twice.gguf"), flash_attn_type=1)
    rig = Rig(model, flash_attn_type=1)
    pair = [(adapter_of(rig, "lora-tiny-llama"), 0.5), (adapter_of(rig, "lora-tiny-llama-2"), 0.25)]
    rig.context.adapters.define(5, pair)
    assert apart(said(rig, group=5), said(whole)) < 1e-3
    whole.close()
    rig.close()


def groups_of(rig, names):
    """Groups 1 to 4: each adapter, and two together; 0 has none."""
    adapters = [adapter_of(rig, name) for name in names]
    for group, adapter in enumerate(adapters, 1):
        rig.context.adapters.define(group, [(adapter, 1.0)])
    rig.context.adapters.define(4, [(adapters[0], 0.5), (adapters[1], -0.25)])


LLAMAS = ["lora-tiny-llama", "lora-tiny-llama-2", "lora-tiny-llama-3"]
SMOLLM2S = ["lora-smollm2", "lora-smollm2-2", "lora-smollm2-3"]


def say_what_each_says_alone(rig, prompts, every=1):
    """Bit for bit, as long as nobody leaves: then attention adds up in another order (see test_real_models)."""
    assert rig.context.mixes
    several = (sequence(rig, tag, prompt, tag % 5, max_tokens=40) for tag, prompt in enumerate(prompts))
    together = tell(rig, *several, n_top=3)
    for tag, prompt in list(enumerate(prompts))[::every]:
        rig.context.clear()
        alone = tell(rig, sequence(rig, tag, prompt, tag % 5, max_tokens=8), n_top=3)[tag]
        assert alone[2] == together[tag][2][:8]
    rig.close()


@pytest.mark.parametrize("settings", [{}, {"n_threads": 2, "n_threads_batch": 2}, {"n_batch": 256, "n_ubatch": 32}])
def test_sixteen_of_five_groups_say_what_each_says_alone(tiny_model, settings):
    rig = Rig(tiny_model("tiny-llama"), n_ctx=4096, flash_attn_type=1, target_itl=100.0, **settings)
    groups_of(rig, LLAMAS)
    say_what_each_says_alone(rig, [[(11 * tag + 7 * k) % 300 + 33 for k in range(20 + tag)] for tag in range(16)])


@pytest.mark.heavy
def test_a_real_model_with_several(smollm2):
    rig = Rig(smollm2, n_ctx=4096, n_batch=512, flash_attn_type=1, target_itl=100.0)
    groups_of(rig, SMOLLM2S)
    say_what_each_says_alone(rig, [[1000 + 11 * tag + 7 * k for k in range(20 + tag)] for tag in range(16)], every=3)


APART = {
    "hybrid": ("tiny-qwen35", {}),
    "partitioned": ("tiny-llama", {"kv_unified": False}),
    "llama.cpp's own": ("tiny-llama", {"bare": True}),
    "few rows": ("tiny-llama", {"n_ubatch": 3}),
}


@pytest.mark.parametrize("kind", APART)
def test_where_they_cannot_share_a_batch_they_take_turns(tiny_model, kind):
    model, settings = APART[kind]
    rig = Rig(tiny_model(model), n_seq_max=6, flash_attn_type=1, **settings)
    names = [OF[model]] * 2 if model == "tiny-qwen35" else LLAMAS[:2]
    for group, name in enumerate(names, 1):
        rig.context.adapters.define(group, [(adapter_of(rig, name), 1.0 / group)])
    assert not rig.context.mixes
    sequences = [sequence(rig, tag, PROMPT[: 20 + tag], tag % 3, max_tokens=20) for tag in range(6)]
    for one in sequences:
        rig.runner.add(one)
    while not all(one.n_past > one.n_prompt for one in sequences):
        assert rig.runner.run(1) in (FINISHED, PAUSED)
    lengths = [one.n_tokens - one.n_prompt for one in sequences]
    for _ in range(6):
        assert rig.runner.run(1) == PAUSED
    grown = [one.n_tokens - one.n_prompt - length for one, length in zip(sequences, lengths, strict=True)]
    assert grown == [2] * 6
    while rig.runner.n_running:
        rig.runner.run(100)
        rig.tidy()
    texts = {tag: text for tag, (text, _, _) in rig.collect().items()}
    for tag in range(6):
        alone = rig.run(sequence(rig, tag, PROMPT[: 20 + tag], tag % 3, max_tokens=20))
        assert alone[tag][0] == texts[tag]
    rig.close()


def test_what_nobody_has_any_more_is_let_go(tiny_model):
    rig = Rig(tiny_model("tiny-llama"), flash_attn_type=1)
    groups_of(rig, LLAMAS)
    assert n_adapter_changes(rig.context) == (0, 0)
    said(rig)
    assert n_adapter_changes(rig.context) == (0, 0)
    said(rig, group=1)
    said(rig, group=1)
    assert n_adapter_changes(rig.context) == (1, 1)
    said(rig, group=2)
    assert n_adapter_changes(rig.context) == (2, 1)  # it took the place of the other
    tell(rig, sequence(rig, 1, group=2), sequence(rig, 2, group=4), n_top=3)
    assert n_adapter_changes(rig.context) == (3, 2)
    said(rig, max_tokens=60)
    assert n_adapter_changes(rig.context) == (4, 0)
    rig.close()


def test_garbage_is_freed_in_whichever_order_it_is_found(tiny_model):
    """To free an adapter takes its model, and the collector may let go of that first."""
    gc.collect()
    gc.freeze()  # else each collection looks at all that other tests have left
    try:
        for _ in range(20):
            adapter = Adapter(Model(str(tiny_model("tiny-llama"))), str(tiny_lora.build(LLAMAS[0])), 8.0)
            cycle = [adapter]
            cycle.append(cycle)
            del adapter, cycle
            gc.collect()
    finally:
        gc.unfreeze()


def test_what_is_no_group(tiny_model):
    rig, other = Rig(tiny_model("tiny-llama")), Rig(tiny_model("tiny-llama"))
    adapter = adapter_of(rig, "lora-tiny-llama")
    many = [(adapter_of(rig, "lora-tiny-llama"), 1.0) for _ in range(17)]
    for group, members in ((0, []), (MAX_GROUPS, []), (-1, []), (1, many), (1, [(adapter, 1.0), (adapter, 0.5)])):
        with pytest.raises(ValueError, match=r"group|twice"):
            rig.context.adapters.define(group, members)
    with pytest.raises(ValueError, match="another model"):
        other.context.adapters.define(1, [(adapter, 1.0)])
    rig.context.adapters.define(1, many[:16])
    rig.context.adapters.define(MAX_GROUPS - 1, [])
    said(rig, group=1)
    rig.close()
    other.close()


def test_what_does_not_fit_is_refused_with_a_reason(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    with pytest.raises(ModelLoadError, match="arch mismatch"):
        adapter_of(rig, "lora-tiny-gemma3")
    with pytest.raises(ModelLoadError, match=r"does not exist|incorrect shape"):
        adapter_of(rig, "lora-smollm2")
    rig.close()
