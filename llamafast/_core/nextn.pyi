from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.context import Context
from llamafast._core.model import Model
from llamafast._core.proposer import Proposer

def available() -> bool: ...

@disjoint_base
class Head(Proposer):
    def __new__(cls, target: Context, model: Model, *, n_threads: int, n_threads_batch: int, least: float) -> Self: ...
