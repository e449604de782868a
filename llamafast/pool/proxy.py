"""Requests that a model answers: found, brought where it is not loaded, and passed on."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import nullcontext
from functools import partial

from llamafast.api.body_size import BodyLimits
from llamafast.api.delivery import run_sized
from llamafast.api.fields import note_rid
from llamafast.api.http import Exchange
from llamafast.api.messages.errors import stream_form_of
from llamafast.api.sse import EventStream
from llamafast.pool.asked import Asked, asked_in, asked_in_form
from llamafast.pool.catalogue import Catalogue
from llamafast.pool.children import Door
from llamafast.pool.fleet import Fleet
from llamafast.pool.member import Member
from llamafast.pool.passing import Body, pass_on

# vLLM's, whose bodies name an adapter
_LOAD = "/v1/load_lora_adapter"
ADAPTERS = (_LOAD, "/v1/unload_lora_adapter")


class Proxy:
    """Streams are told that they live every ``ping_seconds`` while they wait for their model. Paths that are not
    ``prompted`` may change a model's names."""

    def __init__(
        self,
        fleet: Fleet,
        catalogue: Catalogue,
        limits: BodyLimits,
        ping_seconds: float,
        prompted: Collection[str],
    ) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._limits = limits
        self._ping_seconds = ping_seconds
        self._prompted = prompted
        self._orders: set[asyncio.Task[None]] = set()

    async def with_body(self, exchange: Exchange) -> None:
        """The body names the model, or where it is a list ``?model=`` does, as llama-server has it."""
        body = Body(await exchange.read_json(self._limits))
        await self._named(exchange, body, await run_sized(len(body.data), asked_in, body.data))

    async def with_form(self, exchange: Exchange) -> None:
        """The same where the body is a form of fields and files."""
        body = Body(await exchange.read_form(self._limits))
        content_type = exchange.headers.get(b"content-type", b"")
        await self._named(exchange, body, await run_sized(len(body.data), asked_in_form, body.data, content_type))

    async def without_body(self, exchange: Exchange) -> None:
        await exchange.until_disconnect(self._answer(exchange, Body(b""), Asked()))

    async def _named(self, exchange: Exchange, body: Body, asked: Asked) -> None:
        exchange.model = asked.model or ""
        if asked.rid is not None:
            note_rid(asked.rid, exchange)
        answering = self._ordered if exchange.path in ADAPTERS else self._answer
        await exchange.until_disconnect(answering(exchange, body, asked))

    async def _ordered(self, exchange: Exchange, body: Body, asked: Asked) -> None:
        """Load or unload an adapter, to the end even if nobody waits: only then it is known whose its name is."""
        order = asyncio.create_task(self._adapt(exchange, body, asked))
        self._orders.add(order)
        order.add_done_callback(self._orders.discard)
        await asyncio.shield(order)

    async def _adapt(self, exchange: Exchange, body: Body, asked: Asked) -> None:
        ttl_seconds = asked.ttl_seconds
        member = await self._member(exchange, asked)
        taken = asked.lora_name if exchange.path == _LOAD else None
        with self._catalogue.taking(taken, member) if taken else nullcontext():
            door = await self._fleet.enter(member)
            try:
                await self._pass_on(exchange, door, body, member)
            finally:
                self._fleet.leave(member, ttl_seconds)

    async def _answer(self, exchange: Exchange, body: Body, asked: Asked) -> None:
        ttl_seconds = asked.ttl_seconds
        member = await self._member(exchange, asked)
        if (door := self._fleet.enter_now(member)) is None:
            if asked.stream:
                await self._stream_later(exchange, body, member, ttl_seconds)
                return
            door = await self._fleet.enter(member)
        try:
            await self._pass_on(exchange, door, body, member)
        finally:
            self._fleet.leave(member, ttl_seconds)

    async def _pass_on(
        self, exchange: Exchange, door: Door, body: Body, member: Member, stream: EventStream | None = None
    ) -> None:
        changes = exchange.method == "POST" and exchange.path not in self._prompted
        await pass_on(exchange, door, body, stream, partial(self._catalogue.learn, member) if changes else None)

    async def _member(self, exchange: Exchange, asked: Asked) -> Member:
        """Raises InvalidRequest or ModelNotFound."""
        name = asked.model or exchange.query.get("model")
        adapter = asked.lora_name if exchange.path in ADAPTERS else None
        if adapter and not name and (owner := await self._catalogue.find_by_adapter(adapter)) is not None:
            return owner
        member = await self._catalogue.find(name)
        if adapter:
            self._catalogue.check_free(adapter, member)
        return member

    async def _stream_later(self, exchange: Exchange, body: Body, member: Member, ttl_seconds: float | None) -> None:
        """The same for a model that is not there yet. What goes wrong soon is told by the status."""
        entering = asyncio.ensure_future(self._fleet.enter(member))
        try:
            await asyncio.wait((entering,), timeout=self._ping_seconds)
            if entering.done():
                await self._pass_on(exchange, entering.result(), body, member)
                return
            form = stream_form_of(exchange.path)
            async with EventStream(exchange, self._ping_seconds, form=form) as stream:
                await self._pass_on(exchange, await entering, body, member, stream)
        finally:
            entering.cancel()
            # waits for nothing: who waits may be cancelled once more
            entering.add_done_callback(partial(self._left, member, ttl_seconds))

    def _left(self, member: Member, ttl_seconds: float | None, entered: asyncio.Future[Door]) -> None:
        """Whoever has entered, or not, has gone."""
        if not entered.cancelled() and entered.exception() is None:
            self._fleet.leave(member, ttl_seconds)
