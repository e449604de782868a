"""Tiny encoders with made-up weights, and BERT's forward pass in numpy to hold llama.cpp against."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter
from numpy.typing import NDArray

from recipes.tiny_gguf import CACHE, llama
from recipes.tiny_gguf_vocabulary import Vocabulary
from recipes.written import written

Floats = NDArray[np.float32]

# A changed recipe must not find the files of the old one.
FOLDER = CACHE / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]

MEAN, CLS, LAST, RANK = 1, 2, 3, 4  # enum llama_pooling_type
WORDS, WIDTH, HEADS, FF, BLOCKS, POSITIONS = 512, 64, 4, 128, 2, 128


def writer_of(path: Path, arch: str, vocab: Vocabulary) -> GGUFWriter:
    """Everything both families have; inputs are framed by BOS and EOS, and a separator stands between two of them."""
    writer = GGUFWriter(path, arch)
    writer.add_name(f"tiny {arch}")
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    writer.add_token_merges([" ".join(pair) for pair in vocab.merges])
    writer.add_bos_token_id(vocab.id("<|im_start|>"))
    writer.add_eos_token_id(vocab.id("<|im_end|>"))
    writer.add_sep_token_id(vocab.id("<|endoftext|>"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_bool("tokenizer.ggml.add_sep_token", True)
    writer.add_token_type_count(1)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    return writer


def save(writer: GGUFWriter, tensors: Mapping[str, Floats]) -> None:
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def bert_tensors(*, classes: int = 0, broken: bool = False) -> dict[str, Floats]:
    """With ``classes`` a ranking head; ``broken`` puts a NaN into the embedding of token 42."""
    rng = np.random.default_rng(2)

    def matrix(out: int, into: int) -> Floats:
        return rng.standard_normal((out, into), np.float32) / np.float32(sqrt(into))

    tensors = {
        "token_embd.weight": rng.standard_normal((WORDS, WIDTH), np.float32),
        "position_embd.weight": rng.standard_normal((POSITIONS, WIDTH), np.float32),
        "token_types.weight": rng.standard_normal((1, WIDTH), np.float32),
    }
    if broken:
        tensors["token_embd.weight"][42, 3] = np.nan
    modules = [("token_embd_norm", None, WIDTH)]
    for block in (f"blk.{i}" for i in range(BLOCKS)):
        modules += [(f"{block}.{name}", WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")]
        modules += [(f"{block}.ffn_up", WIDTH, FF), (f"{block}.ffn_down", FF, WIDTH)]
        modules += [(f"{block}.{name}", None, WIDTH) for name in ("attn_output_norm", "layer_output_norm")]
    if classes:
        modules += [("cls", WIDTH, WIDTH), ("cls.output", WIDTH, classes)]
    for name, into, out in modules:
        norm = 1 + 0.1 * rng.standard_normal(out, np.float32)
        tensors[f"{name}.weight"] = norm if into is None else matrix(out, into)
        tensors[f"{name}.bias"] = 0.1 * rng.standard_normal(out, np.float32)
    return tensors


def bert(path: Path, *, pooling: int | None = MEAN, classes: int = 0, broken: bool = False) -> None:
    writer = writer_of(path, "bert", Vocabulary(WORDS))
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_uint32("bert.pooling_type", pooling)
    if classes:
        writer.add_array("bert.classifier.output_labels", [f"label {i}" for i in range(classes)])
    save(writer, bert_tensors(classes=classes, broken=broken))


def t5(path: Path) -> None:
    """The encoder alone: 8 position buckets, no head."""
    rng = np.random.default_rng(3)
    writer = writer_of(path, "t5encoder", Vocabulary(WORDS))
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(WIDTH // HEADS)
    writer.add_value_length(WIDTH // HEADS)
    writer.add_relative_attn_buckets_count(8)
    tensors = {
        "token_embd.weight": rng.standard_normal((WORDS, WIDTH), np.float32),
        "enc.output_norm.weight": np.ones(WIDTH, np.float32),
    }
    for i, block in enumerate(f"enc.blk.{i}" for i in range(BLOCKS)):
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"{block}.{name}.weight"] = np.ones(WIDTH, np.float32)
        for name, out, into in (
            *((name, WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_o")),
            ("ffn_up", FF, WIDTH),
            ("ffn_down", WIDTH, FF),
        ):
            tensors[f"{block}.{name}.weight"] = rng.standard_normal((out, into), np.float32) / np.float32(sqrt(into))
        if i == 0:
            tensors[f"{block}.attn_rel_b.weight"] = rng.standard_normal((8, HEADS), np.float32)
    save(writer, tensors)


def broken_llama(path: Path) -> None:
    """A model that generates, with a NaN in the embedding of token 42."""
    llama(path, Vocabulary(WORDS))
    reader = GGUFReader(path, "r+")
    (embeddings,) = (tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    embeddings.data[42, 3] = np.nan
    reader.data.flush()


MODELS: dict[str, Callable[[Path], None]] = {
    "tiny-bert": bert,
    "tiny-bert-cls": partial(bert, pooling=CLS),
    "tiny-bert-unpooled": partial(bert, pooling=None),
    "tiny-bert-broken": partial(bert, broken=True),
    "tiny-llama-broken": broken_llama,
    "tiny-ranker": partial(bert, pooling=RANK, classes=1),
    "tiny-classifier": partial(bert, pooling=RANK, classes=3),
    "tiny-t5": t5,
}


def build(name: str) -> Path:
    """The file of model ``name``. Raises KeyError for other names."""
    return written(FOLDER / f"{name}.gguf", MODELS[name])


def bert_hidden(tensors: Mapping[str, Floats], ids: list[int], heads: int) -> Floats:
    """BERT's last hidden states (tokens, width), from tensors by llama.cpp's names."""

    def norm(x: Floats, name: str) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def linear(x: Floats, name: str) -> Floats:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def split(x: Floats) -> Floats:
        return x.reshape(len(ids), heads, -1).transpose(1, 0, 2)

    x = tensors["token_embd.weight"][ids] + tensors["position_embd.weight"][: len(ids)]
    x = norm(x + tensors["token_types.weight"][0], "token_embd_norm")
    block = 0
    while f"blk.{block}.attn_q.weight" in tensors:
        b = f"blk.{block}"
        q, k, v = (split(linear(x, f"{b}.attn_{part}")) for part in "qkv")
        scores = q @ k.transpose(0, 2, 1) / np.float32(sqrt(q.shape[-1]))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + linear(mixed, f"{b}.attn_output"), f"{b}.attn_output_norm")
        up = linear(x, f"{b}.ffn_up")
        # the tanh form of GELU, as ggml has it
        up = 0.5 * up * (1 + np.tanh(np.float32(sqrt(2 / np.pi)) * (up + 0.044715 * up**3)))
        x = norm(x + linear(up, f"{b}.ffn_down"), f"{b}.layer_output_norm")
        block += 1
    return x
