from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.context import Context
from llamafast._core.model import Model

def available() -> bool: ...

@disjoint_base
class Head:
    def __new__(cls, target: Context, model: Model, *, n_threads: int, n_threads_batch: int, least: float) -> Self: ...
    def time_calls(self) -> None: ...
