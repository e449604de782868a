"""Files of adapters, which are looked at before llama.cpp sees them: it ends the process over some."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import file_digest
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from llamafast._core.adapter_graph import used_tensors
from llamafast._core.adapters import Adapter
from llamafast._core.gguf import Gguf, Tensor, all_finite
from llamafast._core.model import Model
from llamafast.config import LoraConfig
from llamafast.engine.adapters import LoadedAdapter
from llamafast.errors import ConfigError, ModelLoadError

logger = logging.getLogger(__name__)

_TYPES = ("f32", "f16", "bf16")
_HALVES = (".lora_a", ".lora_b")
_EMBEDDINGS = "token_embd.weight"
_INVOCATION = "adapter.alora.invocation_tokens"
_NO_HALF = "_norm.weight"  # llama.cpp leaves them out


class AdapterHead(NamedTuple):
    """What a file says of its alpha, 0 where it says nothing, the weights that it has pairs for, the tokens that invoke
    it, if it waits for some, and what it is for."""

    alpha: float
    weights: set[str]
    invocation: tuple[int, ...]
    task_name: str
    prompt_prefix: str


class AdapterFiles:
    """Those that a model of these ``shards``, the files of its weights, may be given."""

    def __init__(self, model: Model, shards: Sequence[Path]) -> None:
        self._architecture = model.metadata("general.architecture") or ""
        self._generates = model.metadata(f"{self._architecture}.attention.causal") != "false"
        # now, as they are when the model is loaded
        self._weights = {name: tensor for shard in shards for name, tensor in Gguf(str(shard)).tensors().items()}

    def load(self, model: Model, config: LoraConfig, path: Path) -> LoadedAdapter:
        """The adapter at ``path``. Any thread. Raises ConfigError."""
        try:
            digest = _digest(path)
            said = self.check(path)
            adapter = Adapter(model, str(path), said.alpha)
            if unused := said.weights - used_tensors(adapter, len(said.weights)):
                raise ConfigError(f"the adapter {path}: llama.cpp does not apply what it has for {min(unused)}")
            if _digest(path) != digest:
                raise ConfigError(f"the adapter {path} changes while it is read")
        except (OSError, ModelLoadError) as error:
            raise ConfigError(f"the adapter {path}: {error}") from error
        applied = config.scale if config.name is None or config.default else 0.0
        beside = said.invocation, said.task_name, said.prompt_prefix
        return LoadedAdapter(config.name, path, config.scale, applied, digest, adapter, *beside)

    def check(self, path: Path) -> AdapterHead:
        """What ``check_adapter`` says of it. Raises ConfigError."""
        return check_adapter(path, self._weights, self._architecture, generates=self._generates)


@contextmanager
def in_config(id: int) -> Iterator[None]:
    """A ConfigError inside says which adapter of the config's it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"model.loras[{id}]: {error}") from error


def load_adapters(
    configs: Sequence[LoraConfig], paths: Sequence[Path], model: Model, files: AdapterFiles
) -> list[LoadedAdapter]:
    """Those of the config, whose files are at ``paths``. Raises ConfigError."""
    loaded = []
    for id, (config, path) in enumerate(zip(configs, paths, strict=True)):
        with in_config(id):
            one = files.load(model, config, path)
        loaded.append(one)
        who = "every request" if one.applied else f"requests for {config.name}"
        who += f", from the tokens {list(one.invocation)} on" if one.invocation else ""
        logger.info("adapter  %d: %s, scale %g, for %s", id, path.name, config.scale, who)
    return loaded


def check_adapter(path: Path, weights: dict[str, Tensor], architecture: str, *, generates: bool = True) -> AdapterHead:
    """What the file says, once it is seen to be an adapter for a model of these ``weights`` which ``generates`` or only
    embeds: llama.cpp ends the process over some that are not. Raises ConfigError."""
    try:
        head = Gguf(str(path))
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise ConfigError(f"the adapter {path}: {error}") from error
    for key, wanted in {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": architecture,
    }.items():
        if head.text(key) != wanted:
            raise ConfigError(f"the adapter {path}: {key} is {head.text(key)!r}, not {wanted!r}")
    alpha = head.number("adapter.lora.alpha") if head.has_key("adapter.lora.alpha") else 0.0
    if alpha is None or not isfinite(alpha):
        raise ConfigError(f"the adapter {path}: adapter.lora.alpha is no number")
    invocation = _invocation(path, head, weights)
    if invocation and not generates:
        raise ConfigError(f"the adapter {path} is an activated one (aLoRA), and this model generates no text")
    tensors = {name: tensor for name, tensor in head.tensors().items() if not name.endswith(_NO_HALF)}
    if not tensors:
        raise ConfigError(f"the adapter {path} has no tensors")
    for name, tensor in tensors.items():
        fault = _fault_of(name, tensor, tensors, weights, generates) or _data_fault(path, tensor, size)
        if fault is not None:
            raise ConfigError(f"the adapter {path}: {name} {fault}")
    told = head.text("adapter.lora.task_name") or "", head.text("adapter.lora.prompt_prefix") or ""
    return AdapterHead(alpha, {name[:-7] for name in tensors}, invocation, *told)


def _invocation(path: Path, head: Gguf, weights: dict[str, Tensor]) -> tuple[int, ...]:
    """The tokens that invoke it; none where it is always active."""
    if not head.has_key(_INVOCATION):
        return ()
    tokens = head.integers(_INVOCATION)
    if not tokens:
        raise ConfigError(f"the adapter {path}: {_INVOCATION} is no list of tokens")
    embeddings = weights.get(_EMBEDDINGS)
    n_vocab = 0 if embeddings is None else embeddings.shape[1]
    for token in tokens:
        if not 0 <= token < n_vocab:
            raise ConfigError(f"the adapter {path}: {_INVOCATION} has {token}, and the model has {n_vocab} tokens")
    return tuple(tokens)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return file_digest(file, "sha256").digest()


def _fault_of(
    name: str, tensor: Tensor, tensors: dict[str, Tensor], weights: dict[str, Tensor], generates: bool
) -> str | None:
    """What is wrong with a tensor's name, type or shape."""
    whole, half = name[:-7], name[-7:]
    if half not in _HALVES:
        return "is no half of an adapter's pair"
    if (weight := weights.get(whole)) is None:
        return "belongs to no weight of the model"
    if tensor.type not in _TYPES:
        return f"is of type {tensor.type}, not f32, f16 or bf16"
    a, b = (tensors.get(whole + other) for other in _HALVES)
    if a is None or b is None:
        return "has no other half"
    if a.type != b.type:
        return "is of another type than its other half"
    if weight.type == "nvfp4":
        return "belongs to an NVFP4 weight, which llama.cpp adds nothing to"
    n_in, n_out, *more = weight.shape
    if whole == _EMBEDDINGS and generates and "output.weight" not in weights:
        return "changes embeddings that the model's output shares, which llama.cpp cannot"
    if whole == _EMBEDDINGS:
        expected = {".lora_a": (a.shape[0], n_out, *more), ".lora_b": (a.shape[0], n_in, *more)}
    else:
        expected = {".lora_a": (n_in, a.shape[1], *more), ".lora_b": (a.shape[1], n_out, *more)}
    if tensor.shape != expected[half] or min(tensor.shape) < 1:
        return f"has the shape {tensor.shape}, not {expected[half]}"
    return None


def _data_fault(path: Path, tensor: Tensor, size: int) -> str | None:
    """What is wrong with a tensor's numbers."""
    if tensor.begin + tensor.size > size:
        return "ends behind the end of the file"
    with path.open("rb") as file:
        file.seek(tensor.begin)
        return None if all_finite(tensor.type, file.read(tensor.size)) else "has numbers that are none"
