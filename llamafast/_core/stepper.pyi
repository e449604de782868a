from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.constraint import Masker
from llamafast._core.context import Context
from llamafast._core.outbox import Outbox
from llamafast._core.prefiller import Prefiller
from llamafast._core.vocab import Vocab

PAUSED: int
NO_ROOM: int
FINISHED: int
SAVE_DUE: int
PREFILLED: int

@disjoint_base
class Stepper:
    def __new__(
        cls,
        context: Context,
        vocab: Vocab,
        outbox: Outbox,
        *,
        prefill_chunk: int = 0,
        target_itl: float = 0.0,
        prefiller: Prefiller | None = None,
    ) -> Self: ...
    @property
    def masker(self) -> Masker: ...
    spare: float
    def interrupt(self) -> None: ...
    def run(self, max_steps: int) -> int: ...
    def since_last_step(self) -> float: ...
    def counts(self) -> dict[str, float]: ...
    def histograms(self) -> dict[str, tuple[tuple[float, ...], list[int], float]]: ...
