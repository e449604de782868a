"""/v1/responses/{id}: responses that are kept, which any process that has their database can show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from llamafast.api.delivery import run_sized
from llamafast.api.http import JSON_TYPE, Exchange
from llamafast.api.media_texts import encode_whole
from llamafast.api.responses.items import Item
from llamafast.api.responses.schema import DeletedResponse, ItemList
from llamafast.api.responses.store import ResponseStore
from llamafast.api.routes import Route, get
from llamafast.api.sse import encode
from llamafast.errors import InvalidRequest, NotFound

PATH = "/v1/responses"

_DEFAULT_PAGE, _LONGEST_PAGE = 20, 100
# Beyond this a page has no more items: what is stored once may be in each of them.
_PAGE_BYTES = 64 * 2**20


class StoredResponses:
    def __init__(self, store: ResponseStore) -> None:
        self._store = store

    def routes(self) -> Iterator[Route]:
        yield Route(f"{PATH}/{{id}}", {**get(self.retrieve), "DELETE": self.delete})
        yield Route(f"{PATH}/{{id}}/input_items", get(self.input_items))
        yield Route(f"{PATH}/{{id}}/cancel", {"POST": self.cancel})

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
