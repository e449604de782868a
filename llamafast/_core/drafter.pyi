from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.context import Context
from llamafast._core.draft_model import DraftModel
from llamafast._core.nextn import Head

SOURCE_OWN: int
SOURCE_PREDICTION: int
SOURCE_ANSWERS: int
SOURCE_HEAD: int
SOURCE_MODEL: int
N_SOURCES: int
SOURCE_NAMES: tuple[str, ...]

@disjoint_base
class Drafter:
    def __new__(
        cls,
        context: Context,
        *,
        most: int,
        most_sequences: int,
        looks_up: bool,
        answers_bytes: int,
        head: Head | None = None,
        model: DraftModel | None = None,
    ) -> Self: ...
    head: Head | None
    model: DraftModel | None
    def time_steps(self, token: int, seconds: float) -> dict[int, float]: ...
    def forget_answers(self) -> None: ...
    def counts(self) -> dict[str, float]: ...
