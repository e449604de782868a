from array import array
from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.vocab import Vocab

@disjoint_base
class Input:
    group: int
    adapters: object
    def __new__(
        cls,
        vocab: Vocab,
        tokens: array[int],
        *,
        dimensions: int = 0,
        normalize: int = 2,
        group: int = 0,
        adapters: object = None,
    ) -> Self: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def vectors(self) -> bytes | None: ...
