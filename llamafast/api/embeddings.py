"""POST /v1/embeddings, /v1/rerank and /v1/score."""

from __future__ import annotations

import time
from array import array
from base64 import b64encode
from uuid import uuid4

import msgspec

from llamafast.api.decode import decode_request
from llamafast.api.delivery import run_sized
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.schema.embeddings import (
    DocumentText,
    Embedding,
    EmbeddingList,
    EmbeddingsRequest,
    EmbeddingUsage,
    RankedDocument,
    Ranking,
    RerankRequest,
    Score,
    ScoreList,
    ScoreRequest,
    Vector,
)
from llamafast.chat.embedding import PairScoring, plan_embeddings, plan_pairs
from llamafast.engine.types import EmbeddingPlan, EnginePort
from llamafast.errors import InvalidRequest

_EMBEDDINGS = msgspec.json.Decoder(EmbeddingsRequest)
_RERANK = msgspec.json.Decoder(RerankRequest)
_SCORE = msgspec.json.Decoder(ScoreRequest)

_FLOAT_BYTES = 4


class EmbeddingsEndpoint:
    def __init__(self, engine: EnginePort) -> None:
        self._engine = engine

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        request, plan = await run_sized(len(body), self._prepare, body)
        vectors = await self._engine.embed(plan)
        reply = await run_sized(sum(map(len, vectors)), self._encode, request, plan, vectors)
        await exchange.reply(200, reply, JSON_TYPE)

    def _prepare(self, body: bytes) -> tuple[EmbeddingsRequest, EmbeddingPlan]:
        info = self._engine.info
        request = decode_request(_EMBEDDINGS, body, info)
        tokenizer = self._engine.tokenizer
        return request, plan_embeddings(request.input, request.dimensions, request.embd_normalize, tokenizer, info)

    def _encode(self, request: EmbeddingsRequest, plan: EmbeddingPlan, vectors: list[bytes]) -> bytes:
        info = self._engine.info
        assert info.embedding is not None
        encode = _base64 if request.encoding_format == "base64" else _floats
        per_token = info.embedding.pooling == "none"
        size = (request.dimensions or info.embedding.width) * _FLOAT_BYTES
        reply = EmbeddingList(
            data=[
                Embedding([encode(row) for row in _rows(vector, size)] if per_token else encode(vector), index)
                for index, vector in enumerate(vectors)
            ],
            model=info.id,
            usage=_usage(plan),
        )
        return msgspec.json.encode(reply)


class RerankEndpoint:
    def __init__(self, engine: EnginePort) -> None:
        self._engine = engine

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        request, scoring = await run_sized(len(body), self._prepare, body)
        scores = scoring.scores(await self._engine.embed(scoring.plan))
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: request.top_n]
        results = [RankedDocument(index, scores[index]) for index in best]
        if request.return_documents:
            for result in results:
                result.document = DocumentText(_text(request.documents[result.index]))
        await exchange.reply_json(
            Ranking(
                id=f"rerank-{uuid4().hex}",
                model=self._engine.info.id,
                results=results,
                usage=_usage(scoring.plan),
            )
        )

    def _prepare(self, body: bytes) -> tuple[RerankRequest, PairScoring]:
        info = self._engine.info
        request = decode_request(_RERANK, body, info)
        pairs = [(request.query, _text(document)) for document in request.documents]
        raw = bool(request.raw_scores)
        return request, plan_pairs(pairs, ("query", "documents"), raw, self._engine.tokenizer, info)


class ScoreEndpoint:
    def __init__(self, engine: EnginePort) -> None:
        self._engine = engine

    async def __call__(self, exchange: Exchange, body: bytes) -> None:
        scoring = await run_sized(len(body), self._prepare, body)
        scores = scoring.scores(await self._engine.embed(scoring.plan))
        await exchange.reply_json(
            ScoreList(
                id=f"score-{uuid4().hex}",
                created=int(time.time()),
                model=self._engine.info.id,
                data=[Score(index, score) for index, score in enumerate(scores)],
                usage=_usage(scoring.plan),
            )
        )

    def _prepare(self, body: bytes) -> PairScoring:
        info = self._engine.info
        request = decode_request(_SCORE, body, info)
        first, second = ([side] if isinstance(side, str) else side for side in (request.text_1, request.text_2))
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise InvalidRequest("`text_1` must have one item or as many as `text_2`", param="text_1")
        pairs = list(zip(first, second, strict=True))
        return plan_pairs(pairs, ("text_1", "text_2"), bool(request.raw_scores), self._engine.tokenizer, info)


def _text(document: str | DocumentText) -> str:
    return document if isinstance(document, str) else document.text


def _usage(plan: EmbeddingPlan) -> EmbeddingUsage:
    n_tokens = sum(map(len, plan.inputs))
    return EmbeddingUsage(n_tokens, n_tokens)


def _rows(vectors: bytes, size: int) -> list[bytes]:
    return [vectors[start : start + size] for start in range(0, len(vectors), size)]


def _base64(vector: bytes) -> Vector:
    return b64encode(vector).decode()


def _floats(vector: bytes) -> Vector:
    return array("f", vector).tolist()
