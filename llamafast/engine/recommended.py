"""The sampling values that a GGUF recommends."""

from __future__ import annotations

import logging
from typing import Any

from msgspec.structs import replace

from llamafast._core.model import Model
from llamafast.engine.sequence_planner import sampler_of
from llamafast.engine.types import SamplingParams

logger = logging.getLogger(__name__)

# What llama_model_meta_key_str names, and what it sets.
KEYS: dict[str, tuple[str, type[int] | type[float]]] = {
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "temp": ("temperature", float),
    "penalty_last_n": ("penalty_last_n", int),
    "penalty_repeat": ("repetition_penalty", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}


def recommended_sampling(model: Model) -> SamplingParams:
    """SamplingParams() with the model's own values, its ``general.sampling.*``. What makes no sense is left out."""
    values: dict[str, Any] = {}
    for key, (name, number) in KEYS.items():
        text = model.metadata(f"general.sampling.{key}")
        if text is not None:
            _take(values, name, text, number)
    text = model.metadata("general.sampling.sequence")
    if text is not None:
        _take(values, "samplers", text, lambda text: tuple(text.split(";")))
    if values:
        logger.info("sampling %s, as the model recommends", ", ".join(f"{k} {v}" for k, v in values.items()))
    return replace(SamplingParams(), **values)


def _take(values: dict[str, Any], name: str, text: str, read: Any) -> None:
    try:
        value = read(text)
        sampler_of(1, replace(SamplingParams(), **{name: value}))
    except (ValueError, OverflowError) as error:
        logger.warning("the model's recommended %s is ignored: %s", name, error)
    else:
        values[name] = value
