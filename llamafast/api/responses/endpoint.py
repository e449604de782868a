"""/v1/responses over HTTP: create, continue, count."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import msgspec

from llamafast.api.decode import decode_request
from llamafast.api.delivery import run_sized
from llamafast.api.fields import note
from llamafast.api.hidden_tools import ignored
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.responses.events import Event
from llamafast.api.responses.items import in_request
from llamafast.api.responses.plan import PlannedResponse, no_input
from llamafast.api.responses.responder import Responder
from llamafast.api.responses.schema import (
    CompactedResponse,
    CompactionItem,
    InputTokens,
    Response,
    ResponsesRequest,
)
from llamafast.api.sealed import sealed
from llamafast.api.sse import EventStream, encode
from llamafast.engine.types import ModelInfo
from llamafast.errors import EngineFailure, InvalidRequest

_DECODER = msgspec.json.Decoder(ResponsesRequest)


class ResponsesEndpoint:
    def __init__(self, info: ModelInfo, responder: Responder, ping_seconds: float) -> None:
        self._info = info
        self._responder = responder
        self._ping_seconds = ping_seconds

    async def create(self, exchange: Exchange, body: bytes) -> None:
        request, planned = await self._prepare(exchange, body)
        exchange.response_id = planned.response.id
        generation = exchange.follow(self._responder.submit(planned))
        try:
            if request.stream:
                if generation.media_tokens:
                    await generation.begin(self._ping_seconds)
                async with EventStream(exchange, self._ping_seconds, ignored(planned.hidden)) as stream:
                    async for events in self._responder.stream(planned, generation, exchange):
                        size = planned.writer.telling_size(events)
                        await stream.write(await run_sized(size, _frames, events))
                    await stream.end(b"")
                return
            async for _ in self._responder.events(planned, generation):
                pass
            reply = await run_sized(planned.writer.n_bytes, encode, planned.response)
            await exchange.reply(200, reply, JSON_TYPE, ignored(planned.hidden))
        finally:
            generation.cancel()

    async def compact(self, exchange: Exchange, body: bytes) -> None:
        """A conversation in a few words, for clients that go on with them in its place."""
        request = await run_sized(len(body), decode_request, _DECODER, body, self._info, exchange, detach=in_request)
        if request.stream:
            raise InvalidRequest("a compaction cannot be streamed", param="stream")
        if not request.input and request.previous_response_id is None:
            raise no_input(request)
        planned = await self._responder.prepare_compaction(request, len(body), exchange.tenant)
        note(planned.plan.unread, exchange)
        exchange.response_id = planned.response.id
        generation = exchange.follow(self._responder.submit(planned))
        try:
            async for _ in self._responder.events(planned, generation):
                pass
            await exchange.reply_json(_compacted(planned.response))
        finally:
            generation.cancel()

    async def input_tokens(self, exchange: Exchange, body: bytes) -> None:
        """How many tokens the prompt of such a request has."""
        _, planned = await self._prepare(exchange, body)
        tokens = InputTokens(sum(map(len, planned.plan.plan.prompts)))
        await exchange.reply_json(tokens, headers=ignored(planned.hidden))

    async def _prepare(self, exchange: Exchange, body: bytes) -> tuple[ResponsesRequest, PlannedResponse]:
        request = await run_sized(len(body), decode_request, _DECODER, body, self._info, exchange, detach=in_request)
        planned = await self._responder.prepare(request, len(body), exchange.tenant)
        note(planned.plan.unread, exchange)
        return request, planned


def _compacted(response: Response) -> CompactedResponse:
    """Raises EngineFailure when the model wrote no summary."""
    texts = [part.text for item in response.output if item.type == "message" for part in item.content]
    if not (summary := "".join(texts).strip()) or response.usage is None:
        raise EngineFailure("the model wrote no summary")
    item = CompactionItem(id=f"cmp_{uuid4().hex}", encrypted_content=sealed(summary))
    return CompactedResponse(id=response.id, created_at=response.created_at, output=[item], usage=response.usage)


def _frames(events: Sequence[Event]) -> bytes:
    return b"".join([b"event: %b\ndata: %b\n\n" % (event.type.encode(), encode(event)) for event in events])
