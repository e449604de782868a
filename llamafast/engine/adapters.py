"""Low-rank adapters: files that are looked at before llama.cpp sees them, and which of them a request has.

A group is a set of adapters with their scales. Sequences of one group may be computed beside those of any other where
CPUs compute (``_core/adapters.pyx``); none shares what another one has computed.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from pathlib import Path

from llamafast._core.adapters import MAX_GROUPS, Adapter
from llamafast._core.gguf import Gguf, Tensor, all_finite
from llamafast._core.model import Model
from llamafast.config import LoraConfig
from llamafast.engine.adapter_info import AdapterInfo
from llamafast.engine.prefix_key import Adapter as KeyAdapter
from llamafast.errors import ConfigError, InvalidRequest, ModelLoadError, QueueFull

logger = logging.getLogger(__name__)

# Scales are multiples of this: 64 clients with 64 scales are not to need as many groups.
STEPS = 64
_TYPES = ("f32", "f16", "bf16")
_HALVES = (".lora_a", ".lora_b")
_NO_HALF = "_norm.weight"  # llama.cpp leaves them out
Members = tuple[tuple[int, float], ...]
Define = Callable[[int, list[tuple[Adapter, float]]], None]


@dataclass(eq=False)
class LoadedAdapter:
    """``scale`` is for who asks for it by ``name``; whoever does not choose has it with the scale ``applied``."""

    id: int
    name: str | None
    path: Path
    scale: float
    applied: float
    digest: bytes
    adapter: Adapter


class AdapterGroup:
    """Held by the sequences that have it; the core knows it by its ``number``, 0 for no adapters."""

    def __init__(self, number: int, key: tuple[KeyAdapter, ...]) -> None:
        self.number = number
        self.key = key


class Adapters:
    """All that are loaded, and the groups that sequences have. Event loop.

    ``define`` tells the core what a group stands for.
    """

    def __init__(
        self, loaded: Iterable[LoadedAdapter], define: Callable[[int, list[tuple[Adapter, float]]], None]
    ) -> None:
        self.loaded = tuple(loaded)
        self._by_name = {one.name: one for one in self.loaded if one.name is not None}
        self._define = define
        self._free = list(range(MAX_GROUPS - 1, 0, -1))
        self._groups: weakref.WeakValueDictionary[Members, AdapterGroup] = weakref.WeakValueDictionary()
        self._none = AdapterGroup(0, ())

    def listed(self) -> list[AdapterInfo]:
        return [AdapterInfo(one.id, one.name, str(one.path), one.applied) for one in self.loaded]

    def apply(self, scales: Mapping[int, float]) -> None:
        self._check(scales)
        for one in self.loaded:
            one.applied = scales.get(one.id, 0.0)

    def group(self, model: str = "", chosen: Iterable[tuple[int, float]] = ()) -> AdapterGroup:
        """Of a request that names ``model`` and has ``chosen`` adapters by their ids, each with its scale.

        Raises InvalidRequest for an id that there is not, QueueFull where too many groups are in use.
        """
        asked = dict(chosen)
        self._check(asked)
        # whoever lists some has no others, as llama-server has it
        scales = {} if asked else {one.id: one.applied for one in self.loaded}
        if (named := self._by_name.get(model)) is not None:
            scales[named.id] = named.scale
        scales |= asked
        members = tuple((id, rounded(scale)) for id, scale in sorted(scales.items()) if rounded(scale))
        if not members:
            return self._none
        group = self._groups.get(members)
        if group is None:
            group = self._groups[members] = self._new(members)
        return group

    def _check(self, ids: Iterable[int]) -> None:
        for id in ids:
            if not 0 <= id < len(self.loaded):
                raise InvalidRequest(f"`lora`: there is no adapter {id}", param="lora")

    def _new(self, members: Members) -> AdapterGroup:
        if not self._free:
            raise QueueFull("too many sets of adapters are in use")
        number = self._free.pop()
        chosen = [(self.loaded[id], scale) for id, scale in members]
        try:
            self._define(number, [(one.adapter, scale) for one, scale in chosen])
        except BaseException:
            self._free.append(number)
            raise
        group = AdapterGroup(number, tuple(KeyAdapter(one.digest, scale) for one, scale in chosen))
        weakref.finalize(group, self._free.append, number).atexit = False
        return group


def rounded(scale: float) -> float:
    return round(scale * STEPS) / STEPS


def load_adapters(
    configs: Sequence[LoraConfig], paths: Sequence[Path], model: Model, shards: Sequence[Path]
) -> list[LoadedAdapter]:
    """Those of the config, whose files are at ``paths``, for a model of these files. Raises ConfigError."""
    if not configs:
        return []
    weights = {name: tensor for shard in shards for name, tensor in Gguf(str(shard)).tensors().items()}
    loaded = []
    for id, (config, path) in enumerate(zip(configs, paths, strict=True)):
        alpha = check_adapter(path, weights, model.metadata("general.architecture") or "")
        try:
            adapter = Adapter(model, str(path), alpha)
        except ModelLoadError as error:
            raise ConfigError(f"model.loras[{id}]: {error}") from error
        applied = config.scale if config.name is None or config.default else 0.0
        digest = sha256(path.read_bytes()).digest()
        loaded.append(LoadedAdapter(id, config.name, path, config.scale, applied, digest, adapter))
        who = "every request" if applied else f"requests for {config.name}"
        logger.info("adapter  %d: %s, scale %g, for %s", id, path.name, config.scale, who)
    return loaded


def check_adapter(path: Path, weights: dict[str, Tensor], architecture: str) -> float:
    """What the file says of its alpha, 0 where it says nothing, once it is seen to be an adapter for a model of these
    ``weights``: llama.cpp ends the process over some that are not. Raises ConfigError."""
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
    if head.has_key("adapter.alora.invocation_tokens"):
        raise ConfigError(f"the adapter {path}: activated adapters (aLoRA) are not supported yet")
    tensors = {name: tensor for name, tensor in head.tensors().items() if not name.endswith(_NO_HALF)}
    if not tensors:
        raise ConfigError(f"the adapter {path} has no tensors")
    for name, tensor in tensors.items():
        fault = _fault_of(name, tensor, tensors, weights) or _data_fault(path, tensor, size)
        if fault is not None:
            raise ConfigError(f"the adapter {path}: {name} {fault}")
    return alpha


def _fault_of(name: str, tensor: Tensor, tensors: dict[str, Tensor], weights: dict[str, Tensor]) -> str | None:
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
    if whole == "token_embd.weight" and "output.weight" not in weights:
        return "changes embeddings that the model's output shares, which llama.cpp cannot"
    if whole == "token_embd.weight":
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
