from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.vocab import Vocab

@disjoint_base
class Infill:
    def __new__(cls, vocab: Vocab) -> Self: ...
