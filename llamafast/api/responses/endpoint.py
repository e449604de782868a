"""/v1/responses over HTTP: create, read, continue, delete, count."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import msgspec

from llamafast.api.decode import decode_request
from llamafast.api.delivery import run_sized
from llamafast.api.hidden_tools import ignored
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.media_texts import encode_whole
from llamafast.api.responses.events import Event
from llamafast.api.responses.items import Item, in_request
from llamafast.api.responses.plan import PlannedResponse
from llamafast.api.responses.responder import Responder
from llamafast.api.responses.schema import (
    CompactedResponse,
    CompactionItem,
    DeletedResponse,
    InputTokens,
    ItemList,
    Response,
    ResponsesRequest,
)
from llamafast.api.responses.store import ResponseStore
from llamafast.api.sealed import sealed
from llamafast.api.sse import EventStream, encode
from llamafast.engine.types import ModelInfo
from llamafast.errors import EngineFailure, InvalidRequest, NotFound

_DECODER = msgspec.json.Decoder(ResponsesRequest)
_DEFAULT_PAGE, _LONGEST_PAGE = 20, 100
# Beyond this a page has no more items: what is stored once may be in each of them.
_PAGE_BYTES = 64 * 2**20


class ResponsesEndpoint:
    def __init__(self, info: ModelInfo, responder: Responder, store: ResponseStore, ping_seconds: float) -> None:
        self._info = info
        self._responder = responder
        self._store = store
        self._ping_seconds = ping_seconds

    async def create(self, exchange: Exchange, body: bytes) -> None:
        request, planned = await self._prepare(exchange, body)
        generation = exchange.follow(self._responder.submit(planned))
        try:
            if request.stream:
                if generation.media_tokens:
                    await generation.begin(self._ping_seconds)
                async with EventStream(exchange, self._ping_seconds, ignored(planned.hidden)) as stream:
                    async for events in self._responder.stream(planned, generation):
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
        request = await run_sized(len(body), decode_request, _DECODER, body, self._info, detach=in_request)
        if request.model is None:
            raise InvalidRequest("`model` is required", param="model")
        if request.stream:
            raise InvalidRequest("a compaction cannot be streamed", param="stream")
        if not request.input and request.previous_response_id is None:
            raise InvalidRequest("`input` must not be empty", param="input")
        planned = await self._responder.prepare_compaction(request, len(body), exchange.tenant)
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

    async def retrieve(self, exchange: Exchange, response_id: str) -> None:
        if _flag(exchange.query, "stream"):
            raise InvalidRequest("only responses that run in the background can be streamed again", param="stream")
        response = await self._store.response(exchange.tenant.name, response_id)
        if response is None:
            raise _not_found(response_id)
        await exchange.reply(200, response, JSON_TYPE)

    async def delete(self, exchange: Exchange, response_id: str) -> None:
        if not await self._store.delete(exchange.tenant.name, response_id):
            raise _not_found(response_id)
        await exchange.reply_json(DeletedResponse(response_id))

    async def cancel(self, exchange: Exchange, response_id: str) -> None:
        """Nothing runs in the background here: to cancel a response is to leave."""
        if await self._store.response(exchange.tenant.name, response_id) is None:
            raise _not_found(response_id)
        raise InvalidRequest("only responses that run in the background can be cancelled", param="response_id")

    async def input_items(self, exchange: Exchange, response_id: str) -> None:
        given = await self._store.input(exchange.tenant.name, response_id)
        if given is None:
            raise _not_found(response_id)
        page = await run_sized(given.n_bytes, _page, given.items, exchange.query)
        await exchange.reply(200, page, JSON_TYPE)

    async def _prepare(self, exchange: Exchange, body: bytes) -> tuple[ResponsesRequest, PlannedResponse]:
        request = await run_sized(len(body), decode_request, _DECODER, body, self._info, detach=in_request)
        return request, await self._responder.prepare(request, len(body), exchange.tenant)


def _compacted(response: Response) -> CompactedResponse:
    """Raises EngineFailure when the model wrote no summary."""
    texts = [part.text for item in response.output if item.type == "message" for part in item.content]
    if not (summary := "".join(texts).strip()) or response.usage is None:
        raise EngineFailure("the model wrote no summary")
    item = CompactionItem(id=f"cmp_{uuid4().hex}", encrypted_content=sealed(summary))
    return CompactedResponse(id=response.id, created_at=response.created_at, output=[item], usage=response.usage)


def _frames(events: Sequence[Event]) -> bytes:
    return b"".join([b"event: %b\ndata: %b\n\n" % (event.type.encode(), encode(event)) for event in events])


def _page(items: Sequence[Item], query: dict[str, str]) -> bytes:
    """The JSON of an ItemList: what follows ``after``, newest first unless ``order`` is asc. Raises InvalidRequest."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest("`order` must be asc or desc", param="order")
    limit = query.get("limit", str(_DEFAULT_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 3 and 1 <= int(limit) <= _LONGEST_PAGE):
        raise InvalidRequest(f"`limit` must be a number from 1 to {_LONGEST_PAGE}", param="limit")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after := query.get("after"):
        position = next((i for i, item in enumerate(ordered) if item["id"] == after), None)
        if position is None:
            raise InvalidRequest(f"there is no item {after[:128]!r} in this response", param="after")
        ordered = ordered[position + 1 :]
    encoded: list[msgspec.Raw] = []
    n_bytes = 0
    for item in ordered[: int(limit)]:
        if n_bytes > _PAGE_BYTES:
            break
        text = encode_whole(item)
        encoded.append(msgspec.Raw(text))
        n_bytes += len(text)
    data = ordered[: len(encoded)]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return encode(ItemList(encoded, first, last, has_more=len(ordered) > len(data)))


def _flag(query: dict[str, str], name: str) -> bool:
    return query.get(name, "false").lower() in ("true", "1")


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"there is no response {response_id[:128]!r}", param="response_id")
