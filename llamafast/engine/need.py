"""What a model will take of host memory, told by its files' heads before any of it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llamafast._core.gguf import Gguf
from llamafast.config import ModelConfig
from llamafast.engine.fingerprint import shards
from llamafast.engine.placement import placement_of
from llamafast.errors import ModelLoadError

# Beside the weights and the KV cache: graphs, tables of the vocabulary.
SPARE = 1.1
# Bytes of one value, by the ggml types that a KV cache may have.
_VALUE_BYTES = {0: 4.0, 1: 2.0, 2: 18 / 32, 3: 20 / 32, 6: 22 / 32, 7: 24 / 32, 8: 34 / 32, 20: 18 / 32, 30: 2.0}
_F16 = 1


def memory_need(config: ModelConfig, path: Path, beside: Iterable[Path] = ()) -> int:
    """Bytes: the model's files and those ``beside`` (adapters, a projector), its KV cache as if there were no windows,
    and a tenth; of layers that a GPU has nothing. Raises ModelLoadError for a file that is no GGUF."""
    try:
        head = Gguf(str(path))
        weights = sum(file.stat().st_size for file in shards(path)) + _kv_bytes(config, head)
        others = sum(file.stat().st_size for file in beside)
        return round((weights * _share_here(config, head) + others) * SPARE)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: {error}") from error


def _share_here(config: ModelConfig, head: Gguf) -> float:
    """The part of the layers that no GPU has."""
    if placement_of(config).on_cpu:
        return 1.0
    n_elsewhere = config.n_gpu_layers
    if n_elsewhere is None or n_elsewhere < 0:
        return 0.0
    return max(0.0, 1.0 - n_elsewhere / max(1, *_numbers(head, "block_count")))


def _kv_bytes(config: ModelConfig, head: Gguf) -> float:
    def number(key: str) -> int:
        return max(_numbers(head, key), default=0)

    n_layers, n_heads = number("block_count"), number("attention.head_count")
    width = number("embedding_length") // max(1, n_heads)
    row = sum(
        (number(f"attention.{kind}_length") or width) * _VALUE_BYTES[_F16 if type is None else type]
        for kind, type in (("key", config.type_k), ("value", config.type_v))
    )
    # a list where layers differ: those without attention have no heads
    per_layer = _numbers(head, "attention.head_count_kv") or [n_heads]
    n_kv_heads = per_layer[0] * n_layers if len(per_layer) == 1 else sum(per_layer)
    return (config.n_ctx or number("context_length")) * n_kv_heads * row


def _numbers(head: Gguf, key: str) -> list[int]:
    """Of the model's family; none where the file does not say."""
    return head.integers(f"{head.text('general.architecture')}.{key}") or []
