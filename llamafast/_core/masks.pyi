from collections.abc import Mapping
from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Masker:
    def __new__(cls, pace: Mapping[str, float]) -> Self: ...
    def run(self, *, slow: bool = False) -> None: ...
    def close(self) -> None: ...
