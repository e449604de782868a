from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Invocation:
    salt: bytes
    def __new__(cls, *, at: int, group: int, salt: bytes, seed: int = 0) -> Self: ...
    @property
    def at(self) -> int: ...
    @property
    def group(self) -> int: ...
