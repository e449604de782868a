"""What a model will take of host memory, told by its files' heads before any of it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from llamafast._core.gguf import Gguf
from llamafast.config import ModelConfig, cache_type
from llamafast.engine.fingerprint import shards
from llamafast.engine.overrides import Moved, found
from llamafast.engine.placement import CPU, placement_of
from llamafast.errors import ModelLoadError

# Beside the weights and the KV cache: graphs, tables of the vocabulary.
SPARE = 1.1
# Bytes of one value, by the ggml types that a KV cache may have.
_VALUE_BYTES = {0: 4.0, 1: 2.0, 2: 18 / 32, 3: 20 / 32, 6: 22 / 32, 7: 24 / 32, 8: 34 / 32, 20: 18 / 32, 30: 2.0}
_F16 = 1


def memory_need(config: ModelConfig, path: Path, beside: Iterable[Path] = (), draft: Path | None = None) -> int:
    """Bytes: the model's files and those ``beside`` (adapters, a projector, what drafts), its KV cache and that of a
    small model that drafts as if there were no windows, and a tenth; of layers that a GPU has only what overrides leave
    here. Raises ModelLoadError for a file that is no GGUF, ConfigError for overrides that are none of its."""
    try:
        head = Gguf(str(path))
        n_cells = _n_cells(config, head)
        weights = sum(file.stat().st_size for file in shards(path)) + n_cells * _cell_bytes(config, head)
        if draft is not None:
            weights += n_cells * _cell_bytes(replace(config, type_k=None, type_v=None), Gguf(str(draft)))
        others = sum(file.stat().st_size for file in beside)
        share = share_here(config, head)
        moved = moved_here(found(config, path)[1], share) if share < 1.0 else 0
        return round((weights * share + moved + others) * SPARE)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: {error}") from error


def file_bytes(path: Path, beside: Iterable[Path] = ()) -> int:
    """Of a model's files and those ``beside``."""
    return sum(file.stat().st_size for file in (*shards(path), *beside))


def share_here(config: ModelConfig, head: Gguf) -> float:
    """The part of the layers that no GPU has."""
    if placement_of(config).on_cpu:
        return 1.0
    n_elsewhere = config.n_gpu_layers
    if n_elsewhere is None or n_elsewhere < 0:
        return 0.0
    return max(0.0, 1.0 - n_elsewhere / max(1, *_numbers(head, "block_count")))


def moved_here(moved: Iterable[Moved], share: float) -> int:
    """Bytes of weights that overrides leave to CPUs, beyond the ``share`` of each tensor that these have by layers."""
    return round(sum(one.n_bytes * ((one.buffers == CPU) - share) for one in moved))


def cell_bytes(config: ModelConfig, path: Path) -> float:
    """Bytes of one KV cell, as if there were no windows. Raises ModelLoadError for a file that is no GGUF."""
    try:
        return _cell_bytes(config, Gguf(str(path)))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: {error}") from error


def _n_cells(config: ModelConfig, head: Gguf) -> int:
    said = (config.kv_overrides or {}).get(f"{head.text('general.architecture')}.context_length")
    trained = said if isinstance(said, int) else max(_numbers(head, "context_length"), default=0)
    return config.n_ctx or trained


def _cell_bytes(config: ModelConfig, head: Gguf) -> float:
    def number(key: str) -> int:
        return max(_numbers(head, key), default=0)

    n_layers, n_heads = number("block_count"), number("attention.head_count")
    width = number("embedding_length") // max(1, n_heads)
    row = sum(
        (number(f"attention.{kind}_length") or width) * _VALUE_BYTES[_F16 if type is None else type]
        for kind, type in (("key", cache_type(config.type_k)), ("value", cache_type(config.type_v)))
    )
    # a list where layers differ: those without attention have no heads
    per_layer = _numbers(head, "attention.head_count_kv") or [n_heads]
    n_kv_heads = per_layer[0] * n_layers if len(per_layer) == 1 else sum(per_layer)
    return n_kv_heads * row


def _numbers(head: Gguf, key: str) -> list[int]:
    """Of the model's family; none where the file does not say."""
    return head.integers(f"{head.text('general.architecture')}.{key}") or []
