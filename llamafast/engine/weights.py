"""How large a model is and how it is quantised, read from the heads of its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path

from llamafast._core.gguf import Gguf
from llamafast._core.model import Model
from llamafast.engine.model_facts import Weights

# llama.h's llama_ftype, which a GGUF has as `general.file_type`: the names by which people know files.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


def weights_of(model: Model, files: Iterable[Path]) -> Weights:
    """Those of ``model``, which is in ``files``. Where these do not say how they were made, most of their bytes do."""
    tensors = [tensor for file in files for tensor in Gguf(str(file)).tensors().values()]
    n_bytes: Counter[str] = Counter()
    for tensor in tensors:
        n_bytes[tensor.type] += tensor.size
    said = model.metadata("general.file_type") or ""
    most = n_bytes.most_common(1)[0][0].upper() if n_bytes else ""
    name = _FILE_TYPES.get(int(said), most) if said.isdigit() else most
    n_params = sum(prod(tensor.shape) for tensor in tensors)
    return Weights(n_params, model.size, model.n_embd_out, name, model.metadata("general.architecture") or "")
