from collections.abc import Iterable

from typing_extensions import Buffer, disjoint_base

from llamafast._core.dry import Breakers

@disjoint_base
class Sampler:
    def __init__(
        self,
        n_vocab: int,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        typical_p: float,
        top_n_sigma: float,
        xtc_probability: float,
        xtc_threshold: float,
        dynatemp_range: float,
        dynatemp_exponent: float,
        mirostat: int,
        mirostat_tau: float,
        mirostat_eta: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        penalty_last_n: int,
        dry_multiplier: float,
        dry_base: float,
        dry_allowed_length: int,
        dry_penalty_last_n: int,
        logit_bias: Iterable[tuple[int, float]],
        seed: int,
        samplers: Iterable[str],
        dry_breakers: Breakers | None = None,
    ) -> None: ...
    def reseeded(self, seed: int) -> Sampler: ...
    def pick(self, row: Buffer, history: Buffer) -> int: ...
