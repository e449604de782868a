from collections.abc import Iterable
from typing import Self

from typing_extensions import Buffer, disjoint_base

from llamafast._core.dry import Breakers

ORDER: tuple[str, ...]
ON_THE_ROW: tuple[str, ...]
STAGES: dict[str, int]

@disjoint_base
class Sampler:
    def __new__(
        cls,
        n_vocab: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        top_n_sigma: float = 0.0,
        xtc_probability: float = 0.0,
        xtc_threshold: float = 0.1,
        dynatemp_range: float = 0.0,
        dynatemp_exponent: float = 1.0,
        mirostat: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_last_n: int = 64,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_penalty_last_n: int = -1,
        dry_breakers: Breakers | None = None,
        logit_bias: Iterable[tuple[int, float]] = (),
        seed: int = 0,
        samplers: Iterable[str] = ...,
    ) -> Self: ...
    def reseeded(self, seed: int) -> Sampler: ...
    def pick(self, row: Buffer, history: Buffer) -> int: ...
