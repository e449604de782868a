"""One tiny GGUF while it is written, and what all families of models have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from recipes.tiny_gguf_chain import Floats, Ids, chain_output
from recipes.tiny_gguf_vocabulary import CHATML, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes every family shares; ``head`` is the width of one attention head."""

    layers: int
    embd: int = 64
    heads: int
    kv_heads: int
    head: int
    ff: int = 128


class ModelFile:
    """One GGUF being written. Tensor shapes are numpy's: (out, in) where ggml says {in, out}."""

    def __init__(self, path: Path, arch: str, vocab: Vocabulary, shape: Shape, *, pre: str = "qwen2",
                 template: str = CHATML) -> None:  # fmt: skip
        self.arch, self.vocab, self.shape = arch, vocab, shape
        self.rng = np.random.default_rng(1)
        self.writer = writer = GGUFWriter(path, arch)
        writer.add_name(f"tiny {arch}")
        writer.add_file_type(0)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(vocab.tokens)
        writer.add_token_types(vocab.types)
        writer.add_token_merges([" ".join(pair) for pair in vocab.merges])
        writer.add_bos_token_id(vocab.id("<|endoftext|>"))
        writer.add_pad_token_id(vocab.id("<|endoftext|>"))
        writer.add_eos_token_id(vocab.id("<|im_end|>"))
        writer.add_add_bos_token(False)
        writer.add_chat_template(template)
        writer.add_context_length(8192)
        writer.add_embedding_length(shape.embd)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.ff)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
        writer.add_layer_norm_rms_eps(1e-6)

    def key(self, name: str, value: int | float | Sequence[int]) -> None:
        """An architecture key, typed as its value."""
        key = f"{self.arch}.{name}"
        if isinstance(value, int):
            self.writer.add_uint32(key, value)
        elif isinstance(value, float):
            self.writer.add_float32(key, value)
        else:
            self.writer.add_array(key, value)

    def tensor(self, name: str, values: Floats, quantization: GGMLQuantizationType | None = None) -> None:
        values = np.ascontiguousarray(values, np.float32)
        if quantization is None:
            self.writer.add_tensor(name, values)
        else:
            self.writer.add_tensor(name, quantize(values, quantization), raw_dtype=quantization)

    def random(self, *shape: int, scale: float = 1.0) -> Floats:
        """Gaussian weights that keep the variance of their input, times ``scale``."""
        return self.rng.standard_normal(shape, np.float32) * np.float32(scale / shape[-1] ** 0.5)

    def ones(self, width: int, *names: str) -> None:
        for name in names:
            self.tensor(f"{name}.weight", np.ones(width, np.float32))

    def ends(self, *, successors: Ids | None = None, tied_as: GGMLQuantizationType | None = None) -> Floats:
        """Token embeddings, last norm and output matrix; with ``tied_as`` the quantized embeddings serve as both. The
        embeddings."""
        embeddings = self.rng.standard_normal((len(self.vocab), self.shape.embd), np.float32)
        self.tensor("token_embd.weight", embeddings, tied_as)
        self.ones(self.shape.embd, "output_norm")
        if tied_as is None:
            random = self.random(*embeddings.shape, scale=3.0)
            self.tensor("output.weight", random if successors is None else chain_output(embeddings, successors))
        return embeddings

    def attention(self, block: str, *, out: float = 1.0, gated: bool = False, norms: bool = False) -> None:
        """``gated`` doubles the query matrix: half of its rows make the output's gate."""
        s = self.shape
        query = s.heads * s.head * (2 if gated else 1)
        self.tensor(f"{block}.attn_q.weight", self.random(query, s.embd))
        self.tensor(f"{block}.attn_k.weight", self.random(s.kv_heads * s.head, s.embd))
        self.tensor(f"{block}.attn_v.weight", self.random(s.kv_heads * s.head, s.embd))
        self.tensor(f"{block}.attn_output.weight", self.random(s.embd, s.heads * s.head, scale=out))
        if norms:
            self.ones(s.head, f"{block}.attn_q_norm", f"{block}.attn_k_norm")

    def feed_forward(self, block: str, *, out: float = 1.0) -> None:
        s = self.shape
        self.tensor(f"{block}.ffn_gate.weight", self.random(s.ff, s.embd))
        self.tensor(f"{block}.ffn_up.weight", self.random(s.ff, s.embd))
        self.tensor(f"{block}.ffn_down.weight", self.random(s.embd, s.ff, scale=out))

    def save(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
