"""All that the meaning of a saved state depends on: what has another fingerprint is never read."""

from __future__ import annotations

import os
import re
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from llamafast._core.context import Context
from llamafast._core.gguf import Gguf
from llamafast._core.model import Model
from llamafast._core.simd import instruction_set
from llamafast.config import ModelConfig
from llamafast.engine.placement import computes_bare

# To be raised by whatever changes a number that our attention or products give.
KERNELS = 2
# Of the middle of each tensor: no two fine-tunes of a model agree there.
_SAMPLE = 4096
# Copies of llama.cpp that store quantised rows as they are do so by this variable.
_UNROTATED = "LLAMA_ATTN_ROT_DISABLE"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
# what they change is how fast it is
_OF_SPEED = ("no_perf", "op_offload", "offload_kqv")


def fingerprint(config: ModelConfig, path: Path, model: Model, context: Context) -> dict[str, object]:
    """For JSON. Neither paths, names, threads nor the number of sequences are in it; adapters and media are told apart
    by the keys of what they computed. Raises OSError or ValueError for a GGUF that cannot be read (any more)."""
    params = {name: value for name, value in config.llama_context_params.items() if name not in _OF_SPEED}
    return {
        "weights": [_weights(shard) for shard in shards(path)],
        "kv_overrides": config.kv_overrides or {},
        "context": {name: value for name, value in params.items() if value is not None},
        "flash_attn": config.flash_attn,
        "on_cpu": model.on_cpu,
        "longer_than_trained": context.n_ctx_seq > model.n_ctx_train,
        "memory": [context.in_parts, context.n_cuttable, model.is_recurrent, model.is_hybrid],
        "unrotated": os.environ.get(_UNROTATED, ""),
        "llama_cpp_python": version("llama-cpp-python"),
        "kernels": None if computes_bare(model) else [KERNELS, instruction_set()],
        "layouts": model.use_extra_bufts,
    }


def shards(path: Path) -> list[Path]:
    """All files of a model, by the name of one."""
    named = _SHARD.search(path.name)
    if named is None:
        return [path]
    stem = path.name[: named.start()]
    return [path.with_name(f"{stem}-{k:05}-of-{named[2]}.gguf") for k in range(1, int(named[2]) + 1)]


def _weights(path: Path) -> str:
    digest = sha256()
    head = Gguf(str(path))
    middles = [tensor.begin + tensor.size // 2 for tensor in head.tensors().values()]
    with path.open("rb", buffering=0) as file:
        digest.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
        digest.update(os.pread(file.fileno(), head.begin, 0))
        for middle in sorted(middles):
            digest.update(os.pread(file.fileno(), _SAMPLE, middle))
    return digest.hexdigest()
