from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.context import Context
from llamafast._core.proposer import Proposer

@disjoint_base
class DraftModel(Proposer):
    def __new__(cls, target: Context, own: Context, *, n_shared: int, least: float) -> Self: ...
