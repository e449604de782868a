from collections.abc import Mapping
from typing import Any, Self

from typing_extensions import disjoint_base

@disjoint_base
class Constraint:
    def __new__(cls, matcher: Any, n_vocab: int, *, fast_forward: bool = True) -> Self: ...

@disjoint_base
class Masker:
    def __new__(cls, pace: Mapping[str, float]) -> Self: ...
    def run(self, *, slow: bool = False) -> None: ...
    def close(self) -> None: ...
