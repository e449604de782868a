"""POST /v1/embeddings, /v1/rerank and /v1/score: requests and replies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from llamafast.api.schema.fragments import LoraScales


class PoolingOptions(Struct, kw_only=True):
    """The request fields that all three endpoints have in common; ``unserved`` and ``foreign`` are as in
    GenerationOptions."""

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        "truncate_prompt_tokens": (),
        "priority": (0,),
    }
    foreign: ClassVar[dict[str, str]] = {}

    model: str | None = None
    lora: LoraScales | None = None
    user: str | None = None
    truncate_prompt_tokens: Any = None
    priority: Any = None

    def twins(self) -> Iterator[dict[str, Any]]:
        """As in GenerationOptions."""
        yield from ()


class EmbeddingsRequest(PoolingOptions, kw_only=True):
    """``input`` is a string, token ids, a list of strings or a list of lists of token ids.

    ``embd_normalize`` is llama-server's: -1 not at all, 0 the largest absolute value to 32760, p > 0 the p-norm to 1.
    """

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        **PoolingOptions.unserved,
        "add_special_tokens": (True,),
        "normalize": (True,),
    }
    foreign: ClassVar[dict[str, str]] = dict.fromkeys(("prompt", "messages", "instructions"), "all text in `input`")

    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    embd_normalize: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    add_special_tokens: Any = None
    normalize: Any = None

    def twins(self) -> Iterator[dict[str, Any]]:
        norm = self.embd_normalize
        yield {"embd_normalize": None if norm is None else norm >= 0, "normalize": self.normalize}


# Floats, or base64 of little-endian float32.
Vector = list[float] | str


class Embedding(Struct):
    """Where nothing is pooled, ``embedding`` is one vector a token."""

    embedding: Vector | list[Vector]
    index: int
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class DocumentText(Struct):
    text: str


class RerankRequest(PoolingOptions, kw_only=True):
    """``raw_scores`` gives the model's logits instead of probabilities."""

    unserved: ClassVar[dict[str, tuple[object, ...]]] = {
        **PoolingOptions.unserved,
        "max_chunks_per_doc": (),
        "max_tokens_per_doc": (),
    }

    query: str
    documents: Annotated[list[str | DocumentText], Meta(min_length=1)]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool | None = None
    raw_scores: bool | None = None
    max_chunks_per_doc: Any = None
    max_tokens_per_doc: Any = None


class RankedDocument(Struct):
    """``document`` is there when the request wants it back."""

    index: int
    relevance_score: float
    document: DocumentText | UnsetType = UNSET


class Ranking(Struct, kw_only=True):
    """``results``: the most relevant first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    results: list[RankedDocument]
    usage: EmbeddingUsage


class ScoreRequest(PoolingOptions, kw_only=True):
    """Each of ``text_1`` with the same of ``text_2``, or one with all of ``text_2``."""

    text_1: str | Annotated[list[str], Meta(min_length=1)]
    text_2: str | Annotated[list[str], Meta(min_length=1)]
    raw_scores: bool | None = None


class Score(Struct):
    index: int
    score: float
    object: Literal["score"] = "score"


class ScoreList(Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage
