"""Which tensors lie elsewhere than their layers do: a config's patterns, and the names in a model's files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from llamafast._core.gguf import Gguf
from llamafast._core.patterns import names_with
from llamafast.config import ModelConfig
from llamafast.engine.allocated import in_words as size_in_words
from llamafast.engine.fingerprint import shards
from llamafast.engine.placement import CPU
from llamafast.errors import ConfigError

logger = logging.getLogger(__name__)

# A layer's experts, which are one tensor for each of their matrices; some models have a second kind of them (ch).
_EXPERTS = r"\.ffn_(gate|up|gate_up|down)_(ch)?exps\b"
# Of names, where none is what was meant.
_SHOWN = 4


class Override(NamedTuple):
    """A ``pattern``, the name of a type of ``buffers``, and the key that says so."""

    pattern: str
    buffers: str
    key: str


class Moved(NamedTuple):
    """Of one type of ``buffers``: how many tensors overrides put there, and their bytes."""

    buffers: str
    n_tensors: int
    n_bytes: int


def overrides_of(config: ModelConfig, n_layers: int) -> list[Override]:
    """In the order in which llama.cpp looks at them: of several that match the first counts."""
    said = [Override(pattern, where, "override_tensors") for pattern, where in config.tensor_buft_overrides]
    if (layers := config.n_cpu_moe) == 0:
        return said
    if layers == "all" or layers >= n_layers:
        experts = rf"^blk\.[0-9]+{_EXPERTS}"
    else:
        experts = rf"^blk\.({'|'.join(map(str, range(layers)))}){_EXPERTS}"
    return [*said, Override(experts, CPU, "n_cpu_moe")]


def found(config: ModelConfig, path: Path) -> tuple[list[Override], list[Moved]]:
    """The overrides of a model, and what each type of buffers gets by them. Raises ConfigError for a pattern that is
    none, or that no tensor has in its name, OSError or ValueError for a file that cannot be read."""
    if not config.tensor_buft_overrides and config.n_cpu_moe == 0:
        return [], []
    heads = [Gguf(str(file)) for file in shards(path)]
    sizes = {name: tensor.size for head in heads for name, tensor in head.tensors().items()}
    n_layers = (heads[0].integers(f"{heads[0].text('general.architecture')}.block_count") or [0])[0]
    overrides: list[Override] = []
    moved: dict[str, Moved] = {}
    left = dict(sizes)
    for override in overrides_of(config, n_layers):
        names = _names_with(override, sizes)
        if not names and override.key == "n_cpu_moe":
            logger.warning("weights  model.n_cpu_moe does nothing: %s has no experts", path.name)
            continue
        if not names:
            some = ", ".join(list(sizes)[:_SHOWN])
            raise ConfigError(
                f"model.override_tensors: no tensor of {path.name} has {override.pattern} in its name; "
                f"there are {some}, …"
            )
        overrides.append(override)
        here = [left.pop(name) for name in names if name in left]
        before = moved.get(override.buffers, Moved(override.buffers, 0, 0))
        moved[override.buffers] = Moved(override.buffers, before.n_tensors + len(here), before.n_bytes + sum(here))
    return overrides, list(moved.values())


def in_words(moved: Iterable[Moved]) -> Iterator[str]:
    for one in moved:
        yield f"{one.n_tensors} tensors, {size_in_words(one.n_bytes)}, in buffers of {one.buffers}"


def _names_with(override: Override, sizes: dict[str, int]) -> list[str]:
    try:
        return names_with(override.pattern, sizes)
    except ValueError as error:
        raise ConfigError(f"model.{override.key}: {override.pattern} is no pattern: {error}") from error
