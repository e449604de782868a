"""Samplers of which a test names only what it is about."""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict

from llamafast._core.sampler import Sampler
from llamafast.engine.types import SamplingParams

# Tokens are drawn from the distribution as it is; where a stage has no value that switches it off: the default.
OFF = asdict(SamplingParams()) | {"temperature": 1.0, "top_p": 1.0, "seed": 0}
del OFF["dry_sequence_breakers"]


def sampler_of(n_vocab: int, **parameters: Any) -> Sampler:
    return Sampler(n_vocab, **OFF | parameters)
