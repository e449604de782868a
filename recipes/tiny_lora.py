"""Low-rank adapters with made-up weights, for the tiny models and SmolLM2. Deterministic; needs only gguf and numpy.

python -m recipes.tiny_lora OUT [NAME...]
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGUFValueType, GGUFWriter

from recipes.written import written

# A changed recipe must not find the files of the old one.
CACHE = Path(__file__).parents[1] / ".cache" / "models" / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


class Lora(NamedTuple):
    """``targets`` are {tensor: its shape, as ggml has it}; ``alpha`` 0 is left out; ``size`` is how far B moves what it
    is added to. One with an ``invocation`` is active from these tokens on (aLoRA)."""

    arch: str
    targets: dict[str, tuple[int, ...]]
    seed: int
    rank: int = 4
    alpha: float = 8.0
    size: float = 1.0
    dtype: type[np.floating] = np.float32
    invocation: tuple[int, ...] = ()


def _blocks(layers: int, **shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"blk.{block}.{name}.weight": shape for block in range(layers) for name, shape in shapes.items()}


_TINY = _blocks(2, attn_q=(64, 64), attn_v=(64, 32), ffn_down=(128, 64))
_SMOLLM2 = _blocks(30, attn_q=(576, 576), attn_v=(576, 192))
_HYBRID = _blocks(4, ffn_up=(64, 128), ffn_down=(128, 64))
_EXPERTS = _blocks(2, ffn_up_exps=(64, 32, 8), ffn_down_exps=(32, 64, 8), attn_q=(64, 64))
_ENDS = ("token_embd.weight", "output.weight")
LORAS: dict[str, Lora] = {
    "lora-tiny-llama": Lora("llama", _TINY, 5),
    "lora-tiny-llama-2": Lora("llama", _TINY, 6, rank=20, alpha=0.0, size=0.5, dtype=np.float16),
    "lora-tiny-llama-3": Lora("llama", _TINY | dict.fromkeys(_ENDS, (64, 512)), 7, rank=8, alpha=16.0),
    "lora-tiny-qwen35": Lora("qwen35", _HYBRID, 8),
    "lora-tiny-qwen3moe": Lora("qwen3moe", _EXPERTS, 10),
    "lora-tiny-gemma3": Lora("gemma3", _blocks(4, attn_q=(64, 64), ffn_up=(64, 128)), 9),
    "alora-tiny-llama": Lora("llama", _TINY, 11, invocation=(310, 311)),
    "alora-tiny-llama-2": Lora("llama", _TINY, 12, rank=2, invocation=(312,)),
    "alora-tiny-qwen35": Lora("qwen35", _HYBRID, 13, invocation=(310, 311)),
    "alora-tiny-gemma3": Lora("gemma3", _blocks(4, attn_q=(64, 64), ffn_up=(64, 128)), 14, invocation=(310, 311)),
    "lora-smollm2": Lora("llama", _SMOLLM2, 5, size=0.06),
    "lora-smollm2-2": Lora("llama", _SMOLLM2, 6, rank=16, alpha=32.0, size=0.06, dtype=np.float16),
    "lora-smollm2-3": Lora("llama", _SMOLLM2, 7, rank=8, size=0.06),
}


def weights(lora: Lora) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A (rank, in) and B (out, rank) of each tensor, of each expert where it has some. Of token_embd.weight A has a row
    for each token, and B one for each column of an embedding."""
    rng = np.random.default_rng(lora.seed)

    def half(*shape: int, size: float) -> np.ndarray:
        made: np.ndarray = rng.standard_normal(shape) * size / shape[-1] ** 0.5
        return made.astype(lora.dtype)

    pairs = {}
    for name, (n_in, n_out, *experts) in lora.targets.items():
        if name == "token_embd.weight":
            pairs[name] = half(n_out, lora.rank, size=1.0), half(n_in, lora.rank, size=lora.size)
        else:
            pairs[name] = half(*experts, lora.rank, n_in, size=1.0), half(*experts, n_out, lora.rank, size=lora.size)
    return pairs


def changes(lora: Lora, scale: float) -> dict[str, np.ndarray]:
    """What is added to each tensor, (out, in), for the model to be as with the adapter."""
    factor = scale * (lora.alpha / lora.rank if lora.alpha else 1.0)
    found = {}
    for name, halves in weights(lora).items():
        a, b = (half.astype(np.float32) for half in halves)
        found[name] = factor * (a @ b.T if name == "token_embd.weight" else b @ a)
    return found


def write(path: Path, lora: Lora, *, mixed: bool = False) -> None:
    """With ``mixed`` the second halves are of another type."""
    writer = GGUFWriter(path, lora.arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    if lora.alpha:
        writer.add_float32("adapter.lora.alpha", lora.alpha)
    if lora.invocation:
        key = "adapter.alora.invocation_tokens"
        writer.add_key_value(key, lora.invocation, GGUFValueType.ARRAY, GGUFValueType.UINT32)
    for name, (a, b) in weights(lora).items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b.astype(np.float16) if mixed else b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build(name: str, folder: Path = CACHE) -> Path:
    """The file of adapter ``name`` in ``folder``, written first when it is not there. Raises KeyError."""
    lora = LORAS[name]
    return written(folder / f"{name}.gguf", lambda path: write(path, lora))


def main(arguments: list[str]) -> None:
    if not arguments or not set(arguments[1:]) <= LORAS.keys():
        sys.exit(f"usage: tiny_lora.py OUT [NAME...]   names: {' '.join(LORAS)}")
    for name in arguments[1:] or LORAS:
        print(build(name, Path(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
