"""Texts and token ids → EmbeddingPlan; pairs of texts → a plan whose vectors are their scores."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Sequence
from operator import mul
from typing import NamedTuple

from llamafast.chat.plan import Prompt, split_prompts
from llamafast.engine.types import EmbeddingInfo, EmbeddingPlan, ModelInfo, Tokenizer
from llamafast.errors import ContextLengthExceeded, DoesNotEmbed, InvalidRequest

# OpenAI's limits of one request
MAX_INPUTS = 2048
MAX_TOTAL_TOKENS = 300_000
# A reply's numbers; only vectors of single tokens can be more.
MAX_VALUES = 1 << 23

EUCLIDEAN, AS_THEY_ARE = 2, -1  # embd_normalize

_SLOT = re.compile(r"\{(query|document)\}")


class PairScoring(NamedTuple):
    """What to embed, and how the vectors that come back become one score a pair."""

    plan: EmbeddingPlan
    scores: Callable[[list[bytes]], list[float]]


def plan_embeddings(
    prompt: Prompt, dimensions: int | None, normalize: int | None, tokenizer: Tokenizer, info: ModelInfo
) -> EmbeddingPlan:
    """Vectors are normalised to length 1 unless asked otherwise, those of single tokens only when asked.

    Raises InvalidRequest or ContextLengthExceeded.
    """
    embedding = _embedding(info)
    if info.ranks:
        raise InvalidRequest("this model ranks, it makes no embeddings; it serves /v1/rerank", param="model")
    if dimensions is not None and dimensions > embedding.width:
        raise InvalidRequest(f"`dimensions` must be at most {embedding.width}", param="dimensions")
    inputs = split_prompts(prompt, "input")
    paths = ["input"] if len(inputs) == 1 else [f"input[{i}]" for i in range(len(inputs))]
    _check_size([text for text in inputs if isinstance(text, str)], len(inputs), "input", info)
    tokens = [_tokens(text, path, tokenizer, info) for text, path in zip(inputs, paths, strict=True)]
    plan = _plan(tokens, paths, "input", info)
    per_token = embedding.pooling == "none"
    n_values = (sum(map(len, tokens)) if per_token else len(tokens)) * (dimensions or embedding.width)
    if n_values > MAX_VALUES:
        raise InvalidRequest(f"the reply would hold {n_values} numbers, at most {MAX_VALUES} fit", param="input")
    default = AS_THEY_ARE if per_token else EUCLIDEAN
    return EmbeddingPlan(inputs=plan, dimensions=dimensions or 0, normalize=default if normalize is None else normalize)


def plan_pairs(
    pairs: Sequence[tuple[str, str]], fields: tuple[str, str], raw: bool, tokenizer: Tokenizer, info: ModelInfo
) -> PairScoring:
    """Score ``pairs`` with a ranking model, or by cosine where the config lets an embedding model do it.

    A logit becomes a probability unless ``raw``. ``fields`` are the request's names of the two sides. Raises
    InvalidRequest or ContextLengthExceeded.
    """
    embedding = _embedding(info)
    _check_size([text for pair in pairs for text in dict.fromkeys(pair)], len(pairs), fields[1], info)
    for field, side in zip(fields, zip(*pairs, strict=True), strict=True):
        if not all(side):
            raise InvalidRequest(f"`{field}` must not be empty", param=field)
    if info.ranks:
        return _ranked(pairs, fields[1], raw, tokenizer, info, embedding)
    if embedding.pooling == "none" or not embedding.rerank_by_cosine:
        raise InvalidRequest(
            "this model does not rank; with `model.rerank_by_cosine` in the config an embedding model may"
        )
    return _by_cosine(pairs, fields, tokenizer, info)


def _ranked(
    pairs: Sequence[tuple[str, str]],
    field: str,
    raw: bool,
    tokenizer: Tokenizer,
    info: ModelInfo,
    embedding: EmbeddingInfo,
) -> PairScoring:
    if embedding.width != 1 and not embedding.softmax_rank:
        raise InvalidRequest(f"this model sorts into {embedding.width} classes, it does not rank")
    template = embedding.rerank_template
    if template is not None:
        inputs = [tokenizer.tokenize(_fill(template, *pair), add_special=False, parse_special=True) for pair in pairs]
    else:
        sides = {
            text: tokenizer.tokenize(text, add_special=True, parse_special=False)
            for text in dict.fromkeys(text for pair in pairs for text in pair)
        }
        inputs = [tokenizer.pair(sides[first], sides[second]) for first, second in pairs]
    plan = _plan(inputs, [f"{field}[{i}]" for i in range(len(inputs))], field, info)
    is_logit = not (raw or embedding.softmax_rank)

    def scores(vectors: list[bytes]) -> list[float]:
        first = [array("f", vector)[0] for vector in vectors]
        return [_sigmoid(value) for value in first] if is_logit else first

    return PairScoring(EmbeddingPlan(inputs=plan, normalize=AS_THEY_ARE), scores)


def _by_cosine(
    pairs: Sequence[tuple[str, str]], fields: tuple[str, str], tokenizer: Tokenizer, info: ModelInfo
) -> PairScoring:
    places: dict[str, int] = {}
    paths: list[str] = []
    for pair in pairs:
        for text, field in zip(pair, fields, strict=True):
            if text not in places:
                places[text] = len(places)
                paths.append(field)
    tokens = [_tokens(text, path, tokenizer, info) for text, path in zip(places, paths, strict=True)]
    plan = _plan(tokens, paths, fields[1], info)

    def scores(vectors: list[bytes]) -> list[float]:
        unit = [array("f", vector) for vector in vectors]
        return [_dot(unit[places[first]], unit[places[second]]) for first, second in pairs]

    return PairScoring(EmbeddingPlan(inputs=plan), scores)


def _embedding(info: ModelInfo) -> EmbeddingInfo:
    if info.embedding is None:
        raise DoesNotEmbed
    return info.embedding


def _check_size(texts: Sequence[str], n_inputs: int, field: str, info: ModelInfo) -> None:
    """Refuse what cannot be served before it is tokenised: that would take seconds."""
    if n_inputs > MAX_INPUTS:
        raise InvalidRequest(f"`{field}` has {n_inputs} items, at most {MAX_INPUTS} are allowed", param=field)
    longest = MAX_TOTAL_TOKENS * info.longest_piece
    if sum(map(len, texts)) > longest:
        raise InvalidRequest(f"a request must have at most {longest} characters of text", param=field)


def _tokens(text: str | list[int], path: str, tokenizer: Tokenizer, info: ModelInfo) -> array[int]:
    if not text:
        raise InvalidRequest(f"`{path}` must not be empty", param=path)
    if isinstance(text, str):
        return tokenizer.tokenize(text, add_special=True, parse_special=True)
    if set(map(type, text)) != {int}:
        raise InvalidRequest(f"`{path}` must hold only token ids", param=path)
    if min(text) < 0 or max(text) >= info.n_vocab:
        raise InvalidRequest(f"`{path}` has a token id outside 0 to {info.n_vocab - 1}", param=path)
    return array("i", text)


def _plan(inputs: Sequence[array[int]], paths: Sequence[str], field: str, info: ModelInfo) -> tuple[array[int], ...]:
    """``inputs``, all of them neither empty nor too long."""
    limit = _embedding(info).max_tokens
    for tokens, path in zip(inputs, paths, strict=True):
        if not tokens:
            raise InvalidRequest(f"`{path}` gives no tokens", param=path)
        if len(tokens) > limit:
            raise ContextLengthExceeded(
                f"`{path}` has {len(tokens)} tokens; this model takes at most {limit} in one input", param=path
            )
    total = sum(map(len, inputs))
    if total > MAX_TOTAL_TOKENS:
        raise InvalidRequest(f"`{field}` has {total} tokens, a request at most {MAX_TOTAL_TOKENS}", param=field)
    return tuple(inputs)


def _fill(template: str, query: str, document: str) -> str:
    """Both slots in one pass: what a text says is never taken for a slot."""
    texts = {"query": query, "document": document}
    return _SLOT.sub(lambda slot: texts[slot[1]], template)


def _dot(first: array[float], second: array[float]) -> float:
    return math.fsum(map(mul, first, second))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
