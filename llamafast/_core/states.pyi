from array import array
from typing import Self

from typing_extensions import disjoint_base

@disjoint_base
class Node:
    def __new__(cls, parent: Node | None, key: int | bytes, start: int, tokens: array[int]) -> Self: ...

@disjoint_base
class State:
    saved: bytes
    base: State | None
    start: int
    stop: int
    spares: int
    n_bytes: int
    n_heirs: int
    uses: int
    priority: float
    waits: bool
    def __new__(cls, saved: bytes, base: State | None, start: int, stop: int, *, spares: int, n_bytes: int) -> Self: ...
    @property
    def kept(self) -> bool: ...
    @property
    def is_last(self) -> bool: ...

@disjoint_base
class PrefixTree:
    def __new__(cls) -> Self: ...
    @property
    def empty(self) -> bool: ...
    def find(self, tokens: array[int], salt: bytes, length: int, n_cuttable: int) -> tuple[State | None, int]: ...
    def add(self, tokens: array[int], salt: bytes, state: State) -> None: ...
    def drop(self, state: State) -> None: ...
