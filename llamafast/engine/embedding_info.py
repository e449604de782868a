"""The nouns of embeddings that cross the engine's door."""

from __future__ import annotations

from array import array
from typing import Literal

from msgspec import Struct

Pooling = Literal["none", "mean", "cls", "last", "rank"]


class EmbeddingPlan(Struct, frozen=True, kw_only=True):
    """What one request wants embedded: ``inputs`` are arrays of int32 token ids, at least one id each. ``dimensions``
    (0: all) cuts the vectors before they are normalised; ``normalize`` is llama-server's embd_normalize: -1 not at all,
    0 the largest absolute value to 32760, p > 0 the p-norm to 1. ``model`` and ``lora`` are a Plan's."""

    inputs: tuple[array[int], ...]
    dimensions: int = 0
    normalize: int = 2
    model: str = ""
    lora: tuple[tuple[int, float], ...] = ()


class EmbeddingInfo(Struct, frozen=True, kw_only=True):
    """What the layers above may know of a model that embeds.

    ``width`` is the numbers of one vector, with the pooling ``rank`` those of one ranking: a logit, or with
    ``softmax_rank`` the probabilities of yes and no. An input has at most ``max_tokens``. ``rerank_template`` is the
    GGUF's prompt for a ranking, with ``{query}`` and ``{document}``."""

    pooling: Pooling
    width: int
    max_tokens: int
    softmax_rank: bool = False
    rerank_template: str | None = None
