from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Span:
    def __new__(cls, row: int, n_rows: int, n_positions: int, causal: bool, offsets: bytes = b"") -> Self: ...
