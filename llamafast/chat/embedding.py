"""Texts and token ids → EmbeddingPlan; pairs of texts → a plan whose vectors are their scores."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache, partial
from typing import NamedTuple

from llamafast.chat.plan import split_prompts
from llamafast.chat.prompt.control import ControlTokens
from llamafast.chat.request import Prompt
from llamafast.config import ModelConfig
from llamafast.engine.embedding_info import EmbeddingInfo, EmbeddingPlan
from llamafast.engine.types import ModelInfo, Tokenizer
from llamafast.errors import ContextLengthExceeded, DoesNotEmbed, InvalidRequest, Untokenizable

# OpenAI's limits of one request
MAX_INPUTS = 2048
MAX_TOTAL_TOKENS = 300_000
# Characters that an input may have whatever it could stand for: there are tokenisers that drop blanks.
LONG_INPUT = 1 << 16
# A reply's numbers; only vectors of single tokens can be more.
MAX_VALUES = 1 << 23

EUCLIDEAN, AS_THEY_ARE = 2, -1  # embd_normalize

# for a template of rankings; finding them in a text takes a compiled expression
_control_tokens = lru_cache(1)(ControlTokens)

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
    tokens = (_tokens(text, path, tokenizer, info) for text, path in zip(inputs, paths, strict=True))
    plan = _checked_inputs(tokens, [(path,) for path in paths], info)
    per_token = embedding.pooling == "none"
    n_values = (sum(map(len, plan)) if per_token else len(plan)) * (dimensions or embedding.width)
    if n_values > MAX_VALUES:
        raise InvalidRequest(f"the reply would hold {n_values} numbers, at most {MAX_VALUES} fit", param="input")
    default = AS_THEY_ARE if per_token else EUCLIDEAN
    return EmbeddingPlan(inputs=plan, dimensions=dimensions or 0, normalize=default if normalize is None else normalize)


def plan_pairs(
    pairs: Sequence[tuple[str, str]],
    fields: tuple[str, str],
    raw: bool,
    tokenizer: Tokenizer,
    info: ModelInfo,
    config: ModelConfig,
) -> PairScoring:
    """Score ``pairs`` with a ranking model, or by cosine where the config lets an embedding model do it.

    A logit becomes a probability unless ``raw``. ``fields`` are the request's names of the two sides. Raises
    InvalidRequest or ContextLengthExceeded.
    """
    embedding = _embedding(info)
    _check_ranks(info, embedding, config)
    _check_size([text for pair in pairs for text in dict.fromkeys(pair)], len(pairs), fields[1], info)
    paths = _pair_paths(pairs, fields)
    for pair, names in zip(pairs, paths, strict=True):
        for text, path in zip(pair, names, strict=True):
            if not text:
                raise InvalidRequest(f"`{path}` must not be empty", param=path)
            _check_length(text, path, info)
    if info.ranks:
        return _ranked(pairs, paths, raw, tokenizer, info, embedding)
    return _by_cosine(pairs, paths, tokenizer, info)


def _check_ranks(info: ModelInfo, embedding: EmbeddingInfo, config: ModelConfig) -> None:
    if embedding.pooling == "none":
        problem = "this model gives a vector for each token, which cannot rank"
    elif not info.ranks and not config.rerank_by_cosine:
        problem = 'this model does not rank; `"rerank_by_cosine": true` in the config\'s `model` section lets it'
    elif info.ranks and embedding.width != 1 and not embedding.softmax_rank:
        problem = f"this model sorts into {embedding.width} classes, it does not rank"
    else:
        return
    raise InvalidRequest(problem, param="model")


def _pair_paths(pairs: Sequence[tuple[str, str]], fields: tuple[str, str]) -> list[tuple[str, str]]:
    """What the two texts of each pair are called: a first text that all pairs share has no index."""
    one = len({first for first, _ in pairs}) == 1
    return [(fields[0] if one else f"{fields[0]}[{i}]", f"{fields[1]}[{i}]") for i in range(len(pairs))]


def _ranked(
    pairs: Sequence[tuple[str, str]],
    paths: Sequence[tuple[str, str]],
    raw: bool,
    tokenizer: Tokenizer,
    info: ModelInfo,
    embedding: EmbeddingInfo,
) -> PairScoring:
    template = embedding.rerank_template
    if template is not None:
        control = _control_tokens(info.control_tokens)
        inputs = (control.tokenize(_fill(template, *control.mark(pair)), tokenizer) for pair in pairs)
    else:
        side = cache(partial(tokenizer.tokenize, add_special=True, parse_special=False))
        inputs = (tokenizer.pair(side(first), side(second)) for first, second in pairs)
    with Untokenizable.named(paths[0][1].partition("[")[0]):
        plan = _checked_inputs(inputs, paths, info)
    is_logit = not (raw or embedding.softmax_rank)

    def scores(vectors: list[bytes]) -> list[float]:
        from llamafast.chat.vectors import first_values, probabilities

        values = first_values(vectors)
        return probabilities(values) if is_logit else values

    return PairScoring(EmbeddingPlan(inputs=plan, normalize=AS_THEY_ARE), scores)


def _by_cosine(
    pairs: Sequence[tuple[str, str]], paths: Sequence[tuple[str, str]], tokenizer: Tokenizer, info: ModelInfo
) -> PairScoring:
    named: dict[str, str] = {}
    for pair, names in zip(pairs, paths, strict=True):
        for text, path in zip(pair, names, strict=True):
            named.setdefault(text, path)
    places = {text: place for place, text in enumerate(named)}
    tokens = (_tokens(text, path, tokenizer, info) for text, path in named.items())
    plan = _checked_inputs(tokens, [(path,) for path in named.values()], info)

    def scores(vectors: list[bytes]) -> list[float]:
        from llamafast.chat.vectors import dot_products

        return dot_products(vectors, [(places[first], places[second]) for first, second in pairs])

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


def _check_length(text: str, path: str, info: ModelInfo) -> None:
    """The same for one input."""
    limit = _embedding(info).max_tokens
    most = max(LONG_INPUT, limit * info.longest_piece)
    if len(text) > most:
        raise ContextLengthExceeded(limit, f"{len(text)} characters, more than {most}", param=path)


def _tokens(text: str | list[int], path: str, tokenizer: Tokenizer, info: ModelInfo) -> array[int]:
    if not text:
        raise InvalidRequest(f"`{path}` must not be empty", param=path)
    if isinstance(text, str):
        _check_length(text, path, info)
        with Untokenizable.named(path):
            return tokenizer.tokenize(text, add_special=True, parse_special=True)
    if set(map(type, text)) != {int}:
        raise InvalidRequest(f"`{path}` must hold only token ids", param=path)
    if min(text) < 0 or max(text) >= info.n_vocab:
        raise InvalidRequest(f"`{path}` has a token id outside 0 to {info.n_vocab - 1}", param=path)
    return array("i", text)


def _checked_inputs(
    inputs: Iterable[array[int]], paths: Sequence[tuple[str, ...]], info: ModelInfo
) -> tuple[array[int], ...]:
    """``inputs``, all of them neither empty nor too long; ``paths`` name the fields that each is made of.

    What does not fit ends it at once: ``inputs`` may be tokenised one by one.
    """
    limit = _embedding(info).max_tokens
    taken: list[array[int]] = []
    total = 0
    for tokens, names in zip(inputs, paths, strict=True):
        if not tokens:
            made_of = " and ".join(f"`{name}`" for name in names)
            raise InvalidRequest(f"no tokens in {made_of}", param=names[-1])
        if len(tokens) > limit:
            raise ContextLengthExceeded(limit, f"{len(tokens)} tokens", param=names[-1], text=" and ".join(names))
        taken.append(tokens)
        total += len(tokens)
        if total > MAX_TOTAL_TOKENS:
            field = names[-1].partition("[")[0]
            raise InvalidRequest(f"`{field}` has {total} tokens or more, at most {MAX_TOTAL_TOKENS} fit", param=field)
    return tuple(taken)


def _fill(template: str, query: str, document: str) -> str:
    """Both slots in one pass: what a text says is never taken for a slot."""
    texts = {"query": query, "document": document}
    return _SLOT.sub(lambda slot: texts[slot[1]], template)
