"""/v1/responses over HTTP: create, read, continue, delete, count."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from llamafast.api.decode import decode_request
from llamafast.api.delivery import COMPILES, internal_error, run_sized
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.responder import Responder, Turn, input_items
from llamafast.api.response_store import Conversation, ResponseStore
from llamafast.api.schema.response_events import Event
from llamafast.api.schema.responses import DeletedResponse, InputTokens, ItemList, ResponsesRequest
from llamafast.api.sse import EventStream, encode
from llamafast.chat.items import Item
from llamafast.engine.types import EnginePort, Generation
from llamafast.errors import InvalidRequest, LlamafastError, NotFound, PreviousResponseNotFound

log = logging.getLogger(__name__)

_DECODER = msgspec.json.Decoder(ResponsesRequest)
_DEFAULT_PAGE, _LONGEST_PAGE = 20, 100


class ResponsesEndpoint:
    def __init__(self, engine: EnginePort, responder: Responder, store: ResponseStore, ping_seconds: float) -> None:
        self._engine = engine
        self._responder = responder
        self._store = store
        self._ping_seconds = ping_seconds

    async def create(self, exchange: Exchange, body: bytes) -> None:
        request, turn = await self._prepare(body)
        generation = exchange.follow(self._engine.submit(turn.plan.plan))
        try:
            if request.stream:
                await self._stream(exchange, turn, generation)
                return
            async for _ in self._responder.events(turn, generation):
                pass
            self._keep(turn)
            await exchange.reply_json(turn.response)
        finally:
            generation.cancel()

    async def input_tokens(self, exchange: Exchange, body: bytes) -> None:
        """How many tokens the prompt of such a request has."""
        _, turn = await self._prepare(body)
        await exchange.reply_json(InputTokens(sum(map(len, turn.plan.plan.prompts))))

    async def retrieve(self, exchange: Exchange, response_id: str) -> None:
        if _flag(exchange.query, "stream"):
            raise InvalidRequest("only responses that run in the background can be streamed again", param="stream")
        response = self._store.response(response_id)
        if response is None:
            raise _not_found(response_id)
        await exchange.reply(200, response, JSON_TYPE)

    async def delete(self, exchange: Exchange, response_id: str) -> None:
        if not self._store.delete(response_id):
            raise _not_found(response_id)
        await exchange.reply_json(DeletedResponse(response_id))

    async def cancel(self, exchange: Exchange, response_id: str) -> None:
        """Nothing runs in the background here: to cancel a response is to leave."""
        if self._store.response(response_id) is None:
            raise _not_found(response_id)
        raise InvalidRequest("only responses that run in the background can be cancelled", param="response_id")

    async def input_items(self, exchange: Exchange, response_id: str) -> None:
        items = self._store.input(response_id)
        if items is None:
            raise _not_found(response_id)
        await exchange.reply_json(_page(items, exchange.query))

    async def _prepare(self, body: bytes) -> tuple[ResponsesRequest, Turn]:
        request = await run_sized(len(body), decode_request, _DECODER, body, self._engine.info)
        before = self._recall(request.previous_response_id)
        given = input_items(request, before.items, self._store.item)
        turn = await run_sized(
            COMPILES if request.compiles else len(body) + before.n_bytes,
            self._responder.prepare,
            request,
            before.items,
            given,
            store=request.store is not False,
        )
        return request, turn

    def _recall(self, response_id: str | None) -> Conversation:
        if response_id is None:
            return Conversation([], 0)
        conversation = self._store.conversation(response_id)
        if conversation is None:
            raise PreviousResponseNotFound(response_id)
        return conversation

    async def _stream(self, exchange: Exchange, turn: Turn, generation: Generation) -> None:
        async with EventStream(exchange, self._ping_seconds) as stream:
            try:
                async for events in self._responder.events(turn, generation):
                    if turn.response.status != "in_progress":
                        self._keep(turn)
                    await stream.write(_frames(events))
            except LlamafastError as error:
                await stream.write(_frames(turn.writer.failure(error)))
            except Exception:
                log.exception("request %s failed in mid-stream", exchange.request_id.decode())
                await stream.write(_frames(turn.writer.failure(internal_error())))
            await stream.end(b"")

    def _keep(self, turn: Turn) -> None:
        if turn.response.store:
            self._store.put(turn.response, turn.before, turn.input)


def _frames(events: Sequence[Event]) -> bytes:
    return b"".join([b"event: %b\ndata: %b\n\n" % (event.type.encode(), encode(event)) for event in events])


def _page(items: Sequence[Item], query: dict[str, str]) -> ItemList:
    """The items after ``after``, newest first unless ``order`` is asc. Raises InvalidRequest."""
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
    data = ordered[: int(limit)]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return ItemList(data, first, last, has_more=len(ordered) > len(data))


def _flag(query: dict[str, str], name: str) -> bool:
    return query.get(name, "false").lower() in ("true", "1")


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"there is no response {response_id[:128]!r}", param="response_id")
