"""What a GGUF says of itself: keys of the types that are asked for, tensors, and nothing of what is no GGUF."""

from __future__ import annotations

import os

import pytest
from gguf import GGUFWriter

from llamafast._core.gguf import Gguf
from llamafast._core.mtmd import projector_kinds
from llamafast.errors import ModelLoadError
from recipes import tiny_lora


def test_keys_and_tensors(tiny_model):
    path = tiny_model("tiny-llama")
    head = Gguf(str(path))
    assert head.text("general.architecture") == "llama"
    assert head.text("llama.embedding_length") is None  # a number
    assert head.text("tokenizer.ggml.tokens") is None  # a list
    assert head.number("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert head.number("general.architecture") is None
    assert head.has_key("general.name")
    assert not head.has_key("split.count")
    tensors = head.tensors()
    assert tensors["blk.0.ffn_down.weight"][:2] == ("f32", (128, 64, 1, 1))
    assert tensors["blk.0.ffn_down.weight"].size == 4 * 128 * 64
    assert min(tensor.begin for tensor in tensors.values()) == head.begin
    assert max(tensor.begin + tensor.size for tensor in tensors.values()) <= os.path.getsize(path)
    assert not head.is_quantised()


def test_quantised_tensors_are_told(tiny_model, smollm2):
    assert Gguf(str(smollm2)).is_quantised()
    assert Gguf(str(tiny_model("tiny-llama-v152k"))).is_quantised()


def test_integers_alone_and_in_lists(tmp_path):
    path = tmp_path / "numbers.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("one", 2**32 - 1)
    writer.add_int32("signed", -5)
    writer.add_array("several", [0, 4, 8])
    writer.add_array("texts", ["a"])
    writer.add_uint64("long", 1)
    writer.add_float32("real", 1.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    head = Gguf(str(path))
    assert head.integers("one") == [2**32 - 1]
    assert head.integers("signed") == [-5]
    assert head.integers("several") == [0, 4, 8]
    assert [head.integers(key) for key in ("texts", "long", "real", "general.architecture", "none")] == [None] * 5


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF" + b"\xff" * 100, b"no"])
def test_what_is_no_gguf(tmp_path, data):
    path = tmp_path / "no.gguf"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is no GGUF"):
        Gguf(str(path))
    with pytest.raises(ModelLoadError, match="cannot load"):
        projector_kinds(str(path))


def test_a_projector_whose_kind_is_no_text_has_none(tmp_path):
    """llama.cpp would end the process over it."""
    path = tmp_path / "other.gguf"
    writer = GGUFWriter(path, "clip")
    writer.add_uint32("clip.projector_type", 5)
    writer.add_string("clip.audio.projector_type", "ultravox")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert projector_kinds(str(path)) == ["ultravox"]


def test_an_adapter_has_pairs():
    tensors = Gguf(str(tiny_lora.build("lora-tiny-llama"))).tensors()
    assert tensors["blk.0.attn_v.weight.lora_a"].shape[:2] == (64, 4)
    assert tensors["blk.0.attn_v.weight.lora_b"].shape[:2] == (4, 32)
