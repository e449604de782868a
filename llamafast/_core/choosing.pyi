from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.constraint import Masker
from llamafast._core.context import Context
from llamafast._core.outbox import Outbox
from llamafast._core.vocab import Vocab

@disjoint_base
class Chooser:
    def __new__(cls, context: Context, vocab: Vocab, outbox: Outbox, masker: Masker) -> Self: ...
