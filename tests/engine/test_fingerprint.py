"""What makes a saved state another: each alone changes the fingerprint, and nothing else does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.engines import config, loaded

from llamafast._core.gguf import Gguf
from llamafast.engine.fingerprint import fingerprint
from llamafast.engine.load import create_contexts


def taken(path, named=None, **options):
    """The fingerprint of a model with these options; ``named`` is the path it is asked by."""
    asked = config(path, **options).model
    model = loaded(asked, path)
    context, _ = create_contexts(asked, model, 0)
    return fingerprint(asked, named or path, model, context)


@pytest.fixture(scope="module")
def plain(tiny_model):
    return taken(tiny_model("tiny-llama"))


MEANING = {
    "keys of another type": {"type_k": 1},
    "values of another type": {"type_v": 1},
    "flash attention": {"flash_attn": True},
    "the base of rope": {"rope_freq_base": 20_000.0},
    "the scale of rope": {"rope_freq_scale": 0.5},
    "the scaling of rope": {"rope_scaling_type": 1},
    "yarn": {"yarn_ext_factor": 0.5},
    "yarn's attention": {"yarn_attn_factor": 2.0},
    "yarn's ends": {"yarn_beta_fast": 16.0},
    "yarn's other ends": {"yarn_beta_slow": 2.0},
    "yarn's context": {"yarn_orig_ctx": 4096},
    "an override": {"kv_overrides": {"llama.rope.freq_base": 20_000.0}},
    "memory in partitions": {"kv_unified": False},
    "more context than it was trained for": {"n_ctx": 16_384},
}


@pytest.mark.parametrize("what", MEANING)
def test_what_changes_the_meaning_of_a_state_changes_it(tiny_model, plain, what):
    assert taken(tiny_model("tiny-llama"), **MEANING[what]) != plain


SPEED = {
    "threads": {"threads": 2},
    "threads of a batch": {"threads_batch": 2},
    "another name": {"alias": "another"},
    "a template": {"chat_template": "{{ messages }}"},
    "more sequences": {"n_seq_max": 7},
    "a larger batch": {"n_batch": 256},
    "a larger part of a batch": {"n_ubatch": 64},
    "more context": {"n_ctx": 1024},
    "where the mask is made": {"offload_kqv": False, "op_offload": False, "no_perf": True},
    "read, not mapped": {"use_mmap": False},
    "the length of an answer": {"max_output_tokens": 5, "max_seq_len": 100},
}


@pytest.mark.parametrize("what", SPEED)
def test_what_does_not_change_the_meaning_of_a_state_does_not(tiny_model, plain, what):
    assert taken(tiny_model("tiny-llama"), **SPEED[what]) == plain


def test_models_are_told_apart(tiny_model, plain):
    others = [taken(tiny_model(name)) for name in ("tiny-llama-chain", "tiny-qwen35", "tiny-mamba", "tiny-gemma3-swa")]
    assert all(other != plain for other in others)
    assert len({str(other["weights"]) for other in others}) == 4


def test_full_windows_are_told_from_short_ones(tiny_model):
    path = tiny_model("tiny-gemma3-swa")
    assert taken(path, swa_full=True) != taken(path, swa_full=False)


def test_how_rows_are_rotated_counts(tiny_model, plain, monkeypatch):
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    assert taken(tiny_model("tiny-llama")) != plain


def test_another_build_is_another(tiny_model, plain, monkeypatch):
    from llamafast.engine import fingerprint as module

    monkeypatch.setattr(module, "version", lambda name: "0.0.1")
    assert taken(tiny_model("tiny-llama")) != plain


@pytest.fixture
def copied(tiny_model, tmp_path):
    return Path(shutil.copyfile(tiny_model("tiny-llama"), tmp_path / "another name.gguf"))


def test_a_copy_is_the_same(copied, plain):
    assert taken(copied) == plain
    os.utime(copied, (1, 1))
    assert taken(copied) == plain


def middles_of(path):
    return [tensor.begin + tensor.size // 2 for tensor in Gguf(str(path)).tensors().values()]


def changed_at(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def test_one_bit_in_the_middle_of_any_tensor_makes_another(copied, tiny_model, plain):
    original = tiny_model("tiny-llama")
    middles = middles_of(original)
    assert len(middles) > 10
    seen = {str(plain["weights"])}
    for at in middles:
        shutil.copyfile(original, copied)
        changed_at(copied, at)
        seen.add(str(taken(original, named=copied)["weights"]))
    assert len(seen) == len(middles) + 1


def test_a_bit_of_the_header_makes_another(copied, tiny_model, plain):
    data = copied.read_bytes()
    changed_at(copied, data.index(b"tiny llama"))
    assert taken(tiny_model("tiny-llama"), named=copied) != plain


def test_another_size_makes_another(copied, tiny_model, plain):
    with copied.open("ab") as file:
        file.write(bytes(32))
    assert taken(tiny_model("tiny-llama"), named=copied) != plain


def test_all_parts_of_a_model_count(copied, tiny_model, plain):
    first, second = [copied.with_name(f"model-{k:05}-of-00002.gguf") for k in (1, 2)]
    for part in (first, second):
        shutil.copyfile(copied, part)
    both = taken(tiny_model("tiny-llama"), named=first)
    assert both["weights"] == plain["weights"] * 2
    assert both == taken(tiny_model("tiny-llama"), named=second)
    changed_at(second, middles_of(second)[0])
    assert taken(tiny_model("tiny-llama"), named=first) != both
    second.unlink()
    with pytest.raises((OSError, ValueError)):
        taken(tiny_model("tiny-llama"), named=first)


def test_what_is_no_model_has_none(copied, tiny_model):
    copied.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="no GGUF"):
        taken(tiny_model("tiny-llama"), named=copied)
