"""One response, from its request to its last event: what HTTP and WebSocket have in common."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from llamafast.api.delivery import read_replies, rows_size, run_sized, usage_of
from llamafast.api.grammars import Grammars
from llamafast.api.record import Record
from llamafast.api.responses import compaction
from llamafast.api.responses.events import Event
from llamafast.api.responses.items import Item
from llamafast.api.responses.plan import PlannedResponse, ResponsePlanner
from llamafast.api.responses.schema import ResponsesRequest
from llamafast.api.responses.store import History, ResponseStore
from llamafast.api.schema.fragments import Usage
from llamafast.engine.media import MediaLoader
from llamafast.engine.types import EnginePort, Generation, Tenant
from llamafast.errors import InvalidRequest, LlamafastError, PreviousResponseNotFound, internal_error

log = logging.getLogger(__name__)

_ID_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "custom_tool_call": "ctc"}

# Items of other conversations that one request may refer to: each is looked up on its own.
MAX_REFERENCES = 1000

Recall = Callable[[str], History | None]


class Responder:
    """Prepares responses, plays them and keeps those that are to be stored; knows no transport."""

    def __init__(
        self,
        engine: EnginePort,
        planner: ResponsePlanner,
        grammars: Grammars,
        store: ResponseStore,
        media: MediaLoader | None = None,
    ) -> None:
        self._media = media
        self._engine = engine
        self._planner = planner
        self._grammars = grammars
        self._store = store

    async def prepare(
        self,
        request: ResponsesRequest,
        n_bytes: int,
        tenant: Tenant,
        *,
        recall: Recall | None = None,
        prefill: bool = False,
        stream_id: str | UnsetType = UNSET,
        room: int = 0,
    ) -> PlannedResponse:
        """All that can be refused before the engine is asked is refused here. ``n_bytes`` is the request's size,
        ``tenant`` who asks and whose responses are known, ``recall`` what else is remembered than what was stored.

        Raises InvalidRequest, UnsupportedParameter, PreviousResponseNotFound, ContextLengthExceeded or
        StoreUnavailable.
        """
        before = await self._recall(request.previous_response_id, tenant, recall)
        given = await self._input_items(request, tenant, before, n_bytes)
        size = n_bytes + before.n_bytes
        # what fits is searched for by halves, and each try renders again
        n_tries = (len(before.items) + len(given)).bit_length() if request.truncation == "auto" else 1
        said = await run_sized(size, self._planner.said, request, before, given)
        media = await self._media.load(said.sources, tenant.salt) if said.sources and self._media is not None else []
        planned = await run_sized(
            (size + rows_size(media)) * n_tries,
            self._planner.plan,
            request,
            before,
            given,
            n_bytes,
            said,
            media,
            prefill=prefill,
            stream_id=stream_id,
            room=room,
        )
        await self._engine.prepare(planned.plan.plan)
        plan = await self._grammars.constrained(planned.plan.plan, planned.plan.ask)
        return planned._replace(plan=planned.plan._replace(plan=plan), tenant=tenant)

    async def prepare_compaction(self, request: ResponsesRequest, n_bytes: int, tenant: Tenant) -> PlannedResponse:
        """The response that answers with a summary of the request's conversation, or of as much of its end as fits.
        Raises as ``prepare``."""
        given = request.input or []
        limit = request.max_output_tokens or compaction.MAX_TOKENS
        asked = msgspec.structs.replace(
            request,
            input=[
                *([_user_message(given)] if isinstance(given, str) else given),
                _user_message(compaction.QUESTION),
            ],
            tools=None,
            tool_choice=None,
            text=None,
            truncation="auto",
            store=False,
            max_output_tokens=limit,
        )
        room = min(limit, self._engine.info.max_seq_len // 4)
        return await self.prepare(asked, n_bytes, tenant, room=room)

    def submit(self, planned: PlannedResponse) -> Generation:
        """Raises what the engine refuses ``planned`` with."""
        return self._engine.submit(planned.plan.plan, planned.tenant)

    async def events(self, planned: PlannedResponse, generation: Generation) -> AsyncIterator[list[Event]]:
        """The events of ``planned``, batch by batch as they become known. Raises the LlamafastError that ended it."""
        writer, replies = planned.writer, planned.plan.replies()
        yield writer.opening()
        if planned.prefill:
            async for _ in generation:
                pass
            told = writer.closing_prefill(_without_output(usage_of(generation)))
            await self._keep(planned)
            yield told
            return
        async for parts in read_replies(generation, replies):
            for part in parts:
                size = writer.adding_size(part.deltas, part.logprobs)
                told = await run_sized(size, writer.add, part.deltas, part.logprobs)
                if part.finish_reason is not None:
                    told += writer.closing(part.finish_reason, usage_of(generation, replies))
                    await self._keep(planned)
                if told:
                    yield told

    async def stream(
        self, planned: PlannedResponse, generation: Generation, record: Record
    ) -> AsyncIterator[list[Event]]:
        """The same where the client reads along: an error becomes the last event, and is noted in ``record``."""
        try:
            async for told in self.events(planned, generation):
                yield told
        except LlamafastError as error:
            record.error = error
            yield planned.writer.failure(error)
        except Exception:
            log.exception("response %s failed in mid-stream", planned.response.id)
            record.error = internal_error()
            yield planned.writer.failure(record.error)

    async def _recall(self, response_id: str | None, tenant: Tenant, recall: Recall | None) -> History:
        if response_id is None:
            return History([], 0)
        conversation = (recall and recall(response_id)) or await self._store.history(tenant.name, response_id)
        if conversation is None:
            raise PreviousResponseNotFound(response_id)
        return conversation

    async def _keep(self, planned: PlannedResponse) -> None:
        """Before the client is told that it is there, or is not."""
        if planned.response.store:
            planned.response.store = await self._store.put(
                planned.tenant.name, planned.response, planned.before, planned.input
            )

    async def _input_items(
        self, request: ResponsesRequest, tenant: Tenant, before: History, n_bytes: int
    ) -> list[Item]:
        """The request's own items, each with an id. An ``item_reference`` is replaced by what it refers to, among
        ``before`` or else among stored items. Raises InvalidRequest when that is not there."""
        given = request.input or []
        if isinstance(given, str):
            given = [_user_message(given)]
        known: dict[str, Item] = {}
        if names := await run_sized(n_bytes, _references, given):
            known = await run_sized(before.n_bytes, _named, names, before.items)
            if unknown := [name for name in names if name not in known]:
                known |= await self._store.items(tenant.name, unknown[:MAX_REFERENCES])
        return await run_sized(n_bytes, _with_ids, given, known)


def _refers(item: Item) -> bool:
    return item.get("type") == "item_reference" or item.keys() == {"id"}


def _references(given: Sequence[Item]) -> dict[str, None]:
    """The names that ``given`` refers to, each once."""
    return dict.fromkeys(item["id"] for item in given if _refers(item) and isinstance(item.get("id"), str))


def _named(names: Container[str], before: Sequence[Item]) -> dict[str, Item]:
    return {item["id"]: item for item in before if isinstance(item.get("id"), str) and item["id"] in names}


def _with_ids(given: Sequence[Item], known: Mapping[str, Item]) -> list[Item]:
    items: list[Item] = []
    for i, item in enumerate(given):
        if _refers(item):
            name = item.get("id")
            found = known.get(name) if isinstance(name, str) else None
            if found is None:
                raise InvalidRequest(f"`input[{i}]` refers to an item that is not here", param=f"input[{i}].id")
            items.append(found)
        elif isinstance(item.get("id"), str):
            items.append(item)
        else:
            kind = str(item.get("type", "message"))
            items.append(item | {"id": f"{_ID_PREFIXES.get(kind, 'item')}_{uuid4().hex}"})
    return items


def _user_message(text: str) -> Item:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def _without_output(usage: Usage) -> Usage:
    """A prompt is computed by asking for one token more, which nobody sees."""
    return msgspec.structs.replace(usage, completion_tokens=0, total_tokens=usage.prompt_tokens)
