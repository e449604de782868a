from collections.abc import Iterable
from typing import Self

from typing_extensions import Buffer, disjoint_base

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
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_last_n: int = 64,
        logit_bias: Iterable[tuple[int, float]] = (),
        seed: int = 0,
    ) -> Self: ...
    def pick(self, row: Buffer, history: Buffer) -> int: ...
