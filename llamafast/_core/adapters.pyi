from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.model import Model

MAX_GROUPS: int

@disjoint_base
class Adapter:
    model: Model
    alpha: float
    def __new__(cls, model: Model, path: str, alpha: float) -> Self: ...
    def release(self) -> None: ...

@disjoint_base
class AdapterGroups:
    def __new__(cls) -> Self: ...
    def define(self, group: int, members: list[tuple[Adapter, float]]) -> None: ...
    def forget(self, adapter: Adapter) -> None: ...
