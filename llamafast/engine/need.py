"""What a model will take of host memory, told by its files' heads before any of it is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llamafast._core.gguf import Gguf
from llamafast.config import ModelConfig
from llamafast.engine.fingerprint import shards
from llamafast.errors import ModelLoadError

# Beside the weights and the KV cache: graphs, tables of the vocabulary.
SPARE = 1.1
# Bytes of one value, by the ggml types that a KV cache may have.
_VALUE_BYTES = {0: 4.0, 1: 2.0, 2: 18 / 32, 3: 20 / 32, 6: 22 / 32, 7: 24 / 32, 8: 34 / 32, 20: 18 / 32, 30: 2.0}
_F16 = 1


def memory_need(config: ModelConfig, path: Path, beside: Iterable[Path] = ()) -> int:
    """Bytes: the model's files and those ``beside`` (adapters, a projector), its KV cache as if every layer had one,
    and a tenth. Raises ModelLoadError for a file that is no GGUF."""
    try:
        files = sum(file.stat().st_size for file in (*shards(path), *beside))
        return round((files + _kv_bytes(config, Gguf(str(path)))) * SPARE)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: {error}") from error


def _kv_bytes(config: ModelConfig, head: Gguf) -> float:
    family = head.text("general.architecture")

    def number(key: str) -> float:
        return head.number(f"{family}.{key}") or 0.0

    n_heads = number("attention.head_count")
    width = number("embedding_length") / n_heads if n_heads else 0.0
    keys, values = (number(f"attention.{kind}_length") or width for kind in ("key", "value"))
    key_bytes, value_bytes = (_VALUE_BYTES[_F16 if kind is None else kind] for kind in (config.type_k, config.type_v))
    cells = config.n_ctx or number("context_length")
    # where layers differ the number is a list, which is not read
    n_kv_heads = number("attention.head_count_kv") or n_heads
    return cells * number("block_count") * n_kv_heads * (keys * key_bytes + values * value_bytes)
