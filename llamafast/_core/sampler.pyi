from typing import Any

from typing_extensions import Buffer, disjoint_base

from llamafast._core.dry import Breakers
from llamafast._core.infill import Infill

@disjoint_base
class Sampler:
    def __init__(
        self,
        n_vocab: int,
        *,
        dry_breakers: Breakers | None = None,
        infill: Infill | None = None,
        **sampling_params: Any,
    ) -> None: ...
    def reseeded(self, seed: int) -> Sampler: ...
    def pick(self, row: Buffer, history: Buffer) -> int: ...
