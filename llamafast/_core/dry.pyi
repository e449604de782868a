from collections.abc import Iterable
from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.vocab import Vocab

@disjoint_base
class Breakers:
    def __new__(cls, pairs: Iterable[tuple[int, tuple[int, ...]]] = ()) -> Self: ...
    @staticmethod
    def spelling(vocab: Vocab, texts: tuple[bytes, ...], most: int = 0x7FFFFFFF) -> Breakers: ...
