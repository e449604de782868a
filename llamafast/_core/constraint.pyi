from typing import Any, Self

from typing_extensions import disjoint_base

@disjoint_base
class Constraint:
    def __new__(cls, matcher: Any, n_vocab: int, *, fast_forward: bool = True) -> Self: ...
