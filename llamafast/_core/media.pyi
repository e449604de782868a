from typing import Self

from typing_extensions import disjoint_base

from llamafast._core.context import Context

@disjoint_base
class MediaBatch:
    def __new__(cls, context: Context, cost_decay: float) -> Self: ...
