"""What a config means for a model's file as llama_model_params: devices, buffers, and what is told of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llamafast._core.devices import Device
from llamafast.config import ModelConfig
from llamafast.engine import devices as of_devices
from llamafast.engine import overrides as of_overrides
from llamafast.engine.devices import devices_of
from llamafast.engine.drafting import MTP
from llamafast.engine.overrides import Moved, found
from llamafast.engine.placement import placement_of
from llamafast.errors import ConfigError, ModelLoadError


class ModelParams(NamedTuple):
    """``params`` are keywords of a Model; ``devices`` those beside CPUs that it will use, ``moved`` what overrides
    put where."""

    params: dict[str, Any]
    devices: list[Device]
    moved: list[Moved]

    def told(self) -> Iterator[str]:
        """A line for each thing that is not as ever."""
        if self.devices or self.params["devices"] is not None:
            yield f"devices  {of_devices.in_words(self.devices)}"
        for line in of_overrides.in_words(self.moved):
            yield f"weights  {line}"


def model_params(config: ModelConfig, path: Path) -> ModelParams:
    """Of the model itself. Raises ConfigError for devices, buffers, patterns and servers that are not there, or
    ModelLoadError for a file that cannot be read."""
    devices = devices_of(config)
    try:
        overrides, moved = found(config, path)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: {error}") from error
    buffers = devices.buffers()
    for override in overrides:
        if override.buffers not in buffers:
            raise ConfigError(
                f"model.override_tensors: {override.buffers} is no type of buffers that this model may have; there are "
                f"{', '.join(buffers)}"
            )
    pairs = [(override.pattern, buffers[override.buffers]) for override in overrides]
    moved = [one._replace(buffers=buffers[one.buffers]) for one in moved]
    return ModelParams(_params(config, devices.names) | {"tensor_buft_overrides": pairs}, devices.used, moved)


def drafting_params(config: ModelConfig) -> dict[str, Any]:
    """Of a file that drafts for the model: overrides name tensors of the model's own, and of a small model not its
    metadata either. Raises ConfigError."""
    params = _params(config, devices_of(config).names)
    return params | {"kv_overrides": None} if config.has_draft_model else params


def _params(config: ModelConfig, devices: list[str] | None) -> dict[str, Any]:
    placement = placement_of(config)
    return {
        "devices": devices,
        "split_mode": placement.split_mode,
        "main_gpu": placement.main_gpu,
        "with_heads": MTP in (config.drafts or ()),
        **config.llama_model_params,
    }
