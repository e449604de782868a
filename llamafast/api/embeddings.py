"""POST /v1/embeddings, /v1/rerank and /v1/score."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from uuid import uuid4

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from llamafast.api.decode import decode_request
from llamafast.api.delivery import run_sized
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.schema.embeddings import (
    DocumentText,
    Embedding,
    EmbeddingList,
    EmbeddingsRequest,
    EmbeddingUsage,
    PoolingOptions,
    RankedDocument,
    Ranking,
    RerankRequest,
    Score,
    ScoreList,
    ScoreRequest,
)
from llamafast.api.schema.fragments import pairs_of
from llamafast.chat.embedding import PairScoring, plan_embeddings, plan_pairs
from llamafast.config import ModelConfig
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.types import EnginePort
from llamafast.errors import InvalidRequest

_EMBEDDINGS = msgspec.json.Decoder(EmbeddingsRequest)
_RERANK = msgspec.json.Decoder(RerankRequest)
_SCORE = msgspec.json.Decoder(ScoreRequest)

# Of a large reply so much is sent at once.
PART_BYTES = 1 << 20


class EmbeddingsEndpoint:
    def __init__(self, engine: EnginePort) -> None:
        self._engine = engine
        if engine.info.embedding is not None:
            # numpy: the first request would wait for it
            import_module("llamafast.chat.vectors")

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        request, plan = await run_sized(len(body), self._prepare, exchange, body)
        exchange.input_tokens = _n_tokens(plan)
        vectors = await self._engine.embed(plan, exchange.tenant)
        parts = await run_sized(sum(map(len, vectors)), self._encode, request, plan, vectors)
        length = b"%d" % sum(map(len, parts))
        await exchange.start(200, ((b"content-type", JSON_TYPE), (b"content-length", length)))
        for part in parts[:-1]:
            await exchange.write(part)
            # handing megabytes over takes time as well
            await asyncio.sleep(0)
        await exchange.write(parts[-1], more=False)

    def _prepare(self, exchange: Exchange, body: bytes) -> tuple[EmbeddingsRequest, EmbeddingPlan]:
        info = self._engine.info
        request = decode_request(_EMBEDDINGS, body, info, exchange)
        tokenizer = self._engine.tokenizer
        plan = plan_embeddings(request.input, request.dimensions, request.embd_normalize, tokenizer, info)
        return request, _adapted(plan, request)

    def _encode(self, request: EmbeddingsRequest, plan: EmbeddingPlan, vectors: list[bytes]) -> list[bytes]:
        """The reply in parts. Vectors are encoded one by one: other threads wait for the GIL no longer than for one."""
        info = self._engine.info
        assert info.embedding is not None
        reply = EmbeddingList(data=[], model=plan.model or info.id, usage=_usage(plan))
        per_token = info.embedding.pooling == "none"
        width = request.dimensions or info.embedding.width
        return _parts(_pieces(reply, vectors, width, request.encoding_format == "base64", per_token=per_token))


class RerankEndpoint:
    def __init__(self, engine: EnginePort, config: ModelConfig) -> None:
        self._engine = engine
        self._config = config

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        request, scoring = await run_sized(len(body), self._prepare, exchange, body)
        exchange.input_tokens = _n_tokens(scoring.plan)
        vectors = await self._engine.embed(scoring.plan, exchange.tenant)
        size = sum(map(len, vectors)) + (len(body) if request.return_documents else 0)
        await exchange.reply(200, await run_sized(size, self._encode, request, scoring, vectors), JSON_TYPE)

    def _prepare(self, exchange: Exchange, body: bytes) -> tuple[RerankRequest, PairScoring]:
        info = self._engine.info
        request = decode_request(_RERANK, body, info, exchange)
        pairs = [(request.query, _text(document)) for document in request.documents]
        raw = bool(request.raw_scores)
        scoring = plan_pairs(pairs, ("query", "documents"), raw, self._engine.tokenizer, info, self._config)
        return request, scoring._replace(plan=_adapted(scoring.plan, request))

    def _encode(self, request: RerankRequest, scoring: PairScoring, vectors: list[bytes]) -> bytes:
        scores = scoring.scores(vectors)
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
        results = [RankedDocument(index, scores[index]) for index in best]
        if request.return_documents:
            for result in results:
                result.document = DocumentText(_text(request.documents[result.index]))
        return msgspec.json.encode(
            Ranking(
                id=f"rerank-{uuid4().hex}",
                model=scoring.plan.model or self._engine.info.id,
                results=results,
                usage=_usage(scoring.plan),
            )
        )


class ScoreEndpoint:
    def __init__(self, engine: EnginePort, config: ModelConfig) -> None:
        self._engine = engine
        self._config = config

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        scoring = await run_sized(len(body), self._prepare, exchange, body)
        exchange.input_tokens = _n_tokens(scoring.plan)
        vectors = await self._engine.embed(scoring.plan, exchange.tenant)
        scores = await run_sized(sum(map(len, vectors)), scoring.scores, vectors)
        await exchange.reply_json(
            ScoreList(
                id=f"score-{uuid4().hex}",
                created=int(time.time()),
                model=scoring.plan.model or self._engine.info.id,
                data=[Score(index, score) for index, score in enumerate(scores)],
                usage=_usage(scoring.plan),
            )
        )

    def _prepare(self, exchange: Exchange, body: bytes) -> PairScoring:
        info = self._engine.info
        request = decode_request(_SCORE, body, info, exchange)
        first, second = ([side] if isinstance(side, str) else side for side in (request.text_1, request.text_2))
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise InvalidRequest("`text_1` must have one item or as many as `text_2`", param="text_1")
        pairs = list(zip(first, second, strict=True))
        raw = bool(request.raw_scores)
        scoring = plan_pairs(pairs, ("text_1", "text_2"), raw, self._engine.tokenizer, info, self._config)
        return scoring._replace(plan=_adapted(scoring.plan, request))


def _adapted(plan: EmbeddingPlan, request: PoolingOptions) -> EmbeddingPlan:
    return replace(plan, model=request.model or "", lora=pairs_of(request.lora))


def _text(document: str | DocumentText) -> str:
    return document if isinstance(document, str) else document.text


def _usage(plan: EmbeddingPlan) -> EmbeddingUsage:
    n_tokens = _n_tokens(plan)
    return EmbeddingUsage(n_tokens, n_tokens)


def _n_tokens(plan: EmbeddingPlan) -> int:
    return sum(map(len, plan.inputs))


def _pieces(
    reply: EmbeddingList, vectors: Iterable[bytes], width: int, base64: bool, *, per_token: bool
) -> Iterator[bytes]:
    """``reply`` with ``vectors`` for its data, each vector of ``width`` numbers a piece of its own."""
    from llamafast.chat.vectors import base64_text, rows

    before, after = _around(reply)
    yield before + b"["
    for index, vector in enumerate(vectors):
        item_before, item_after = _around(Embedding([], index))
        yield b"," * (index > 0) + item_before + b"[" * per_token
        for place, row in enumerate(rows(vector, width)):
            yield b"," * (place > 0) + msgspec.json.encode(base64_text(row) if base64 else row.tolist())
        yield b"]" * per_token + item_after
    yield b"]" + after


def _around(shape: Struct) -> tuple[bytes, bytes]:
    """The JSON before and behind the empty list in it, which is the first one."""
    before, _, after = msgspec.json.encode(shape).partition(b"[]")
    return before, after


def _parts(pieces: Iterable[bytes]) -> list[bytes]:
    """Joined to parts of PART_BYTES or a piece more."""
    parts: list[bytes] = []
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= PART_BYTES:
            parts.append(b"".join(waiting))
            waiting, size = [], 0
    return [*parts, b"".join(waiting)]
