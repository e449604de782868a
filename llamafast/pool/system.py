"""What a server of several models says of itself, and how an administrator loads and unloads them."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlencode

import msgspec

from llamafast import metrics
from llamafast.api.body_size import BodyLimits
from llamafast.api.decode import convert, parse
from llamafast.api.delivery import run_sized
from llamafast.api.http import JSON_TYPE, Exchange, error_body
from llamafast.api.messages.errors import VERSION
from llamafast.api.messages.models import Served, model_page, model_told
from llamafast.api.ollama import named_in, shown
from llamafast.api.schema.fragments import ErrorObject
from llamafast.api.system import BY_API, reply_not_ready
from llamafast.config import PoolConfig
from llamafast.errors import AnswerTimeout, EngineUnavailable
from llamafast.pool.catalogue import Catalogue, Entry
from llamafast.pool.division import disk_folder
from llamafast.pool.exposition import merged
from llamafast.pool.fleet import Fleet
from llamafast.pool.former import FormerFolders
from llamafast.pool.member import Member, State
from llamafast.pool.passing import LOST, Body, ask, pass_on

log = logging.getLogger(__name__)

# What a child has for a probe, a scrape or a reset.
_SECONDS = 5.0
# So long whoever wants a reset waits for a model that may hang: between two steps there is time for it sooner.
_RESET_SECONDS = 1.0


class _Named(msgspec.Struct):
    model: str


class _Stalled(msgspec.Struct):
    seconds: float = 0.0


class _Freed(msgspec.Struct):
    freed_bytes: int = 0


class _NotAll(msgspec.Struct):
    """OpenAI's error reply, and what has been done in spite of it."""

    error: ErrorObject
    freed_bytes: int
    unanswered: list[str]


_NAMED = msgspec.json.Decoder(_Named)


class PoolEndpoints:
    """``draining``: whether new requests should go elsewhere. Nothing here counts as a use of a model."""

    def __init__(self, fleet: Fleet, catalogue: Catalogue, config: PoolConfig, limits: BodyLimits) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._config = config
        self._limits = limits
        self.draining = False
        self._orders: set[asyncio.Task[tuple[int, bytes] | None]] = set()

    async def models(self, exchange: Exchange) -> None:
        entries = self._catalogue.entries()
        if VERSION in exchange.headers:
            await exchange.reply_json(model_page([_served(entry) for entry in entries], exchange.query), headers=BY_API)
        else:
            await exchange.reply_json({"object": "list", "data": entries}, headers=BY_API)

    async def model(self, exchange: Exchange, model_id: str) -> None:
        entry = self._catalogue.entry(model_id)
        told = model_told(_served(entry)) if VERSION in exchange.headers else entry
        await exchange.reply_json(told, headers=BY_API)

    def entries(self) -> list[Entry]:
        return self._catalogue.entries()

    async def show(self, exchange: Exchange) -> None:
        """Ollama's POST /api/show: told by the model where it is loaded, else by what is known of it. It is not loaded
        for that, nor kept."""
        body = await exchange.read_json(self._limits)
        name = await named_in(body, exchange)
        member = await self._catalogue.find(name)
        if member.state is State.LOADED and member.child is not None:
            await exchange.until_disconnect(pass_on(exchange, member.child.door, Body(body)))
        else:
            await exchange.reply_json(shown(self._catalogue.entry(name), ""))

    async def load(self, exchange: Exchange) -> None:
        self._fleet.load(await self._named(exchange))
        await exchange.reply_json({"success": True})

    async def unload(self, exchange: Exchange) -> None:
        self._fleet.unload(await self._named(exchange))
        await exchange.reply_json({"success": True})

    async def ready(self, exchange: Exchange) -> None:
        """200 while new requests are welcome."""
        if self.draining:
            await reply_not_ready(exchange, "draining")
        else:
            await self.health(exchange)

    async def health(self, exchange: Exchange) -> None:
        """200 once all is loaded that is to be from the start, and while no engine stands still over work."""
        if not self._fleet.ready:
            failed = any(member.pinned and member.failed for member in self._fleet.members.values())
            await reply_not_ready(exchange, "failed" if failed else "loading")
            return
        stalled = 0.0
        for status, body in (await self._each("/healthz")).values():
            if status != 200:
                stalled = max(stalled, msgspec.json.decode(body, type=_Stalled).seconds or _SECONDS)
        if stalled:
            await reply_not_ready(exchange, "stalled", seconds=stalled)
        else:
            await exchange.reply_json({"status": "ok"})

    async def slots(self, exchange: Exchange) -> None:
        """Those of the model that ``?model=`` names. One that is not loaded has none, and is not loaded for that."""
        member = await self._catalogue.find(exchange.query.get("model"))
        asked = urlencode({name: value for name, value in exchange.query.items() if name != "model"})
        answer = await self._told(member, f"/slots?{asked}") if member.state is State.LOADED else None
        if answer is None:
            await exchange.reply_json([])
        elif answer[0] == AnswerTimeout.status:
            raise AnswerTimeout(f"the model {member.name!r} does not answer")
        else:
            await exchange.reply(*answer, JSON_TYPE)

    async def metrics(self, exchange: Exchange) -> None:
        told = await self._each("/metrics")
        texts = {name: body for name, (status, body) in told.items() if status == 200}
        # lines by the thousand are read: not on the event loop
        members = tuple(self._fleet.members.values())
        body, content_type = await asyncio.to_thread(merged, texts, metrics.render_process(), members)
        await exchange.reply(200, body, content_type.encode())

    async def watch(self, exchange: Exchange) -> None:
        """The engine of the model in ``?model=``, or of the first one that is loaded; it is not loaded for that, nor
        kept. Raises ModelNotFound or EngineUnavailable."""
        name = exchange.query.get("model")
        members = [await self._catalogue.find(name)] if name else list(self._fleet.members.values())
        for member in members:
            if member.state is State.LOADED and member.child is not None:
                await exchange.until_disconnect(pass_on(exchange, member.child.door, Body(b"")), endless=True)
                return
        raise EngineUnavailable(f"the model {members[0].name!r} is not loaded")

    async def reset_prefix_cache(self, exchange: Exchange) -> None:
        """Forget what finished requests have left, of models that are not loaded too; the body is not read. A model
        that does not answer is named in a 504, when the others have forgotten."""
        await exchange.until_disconnect(self._reset(exchange))

    async def _reset(self, exchange: Exchange) -> None:
        freed, unanswered = 0, []
        for name, answer in (await self._ordered()).items():
            if answer is not None and answer[0] == 200:
                freed += msgspec.json.decode(answer[1], type=_Freed).freed_bytes
            else:
                unanswered.append(name)
        if (disk := self._config.disk_cache) is not None:
            members = self._fleet.members.values()
            unloaded = [disk_folder(disk, member.config) for member in members if member.child is None]
            freed += await asyncio.to_thread(FormerFolders(disk, self._config.models).clear, unloaded)
        if not unanswered:
            await exchange.reply_json({"freed_bytes": freed})
            return
        error = AnswerTimeout(f"not reset, as they did not answer: {', '.join(unanswered)}; ask again")
        log.warning("models   %s", error.message)
        told = _NotAll(error_body(error).error, freed, unanswered)
        await exchange.reply_json(told, error.status)

    async def _ordered(self) -> dict[str, tuple[int, bytes] | None]:
        """What every model that is loaded answers to a reset, None where it does not in time. One that has just let
        somebody wait in vain is not waited for; the order reaches it all the same."""
        orders: dict[str, asyncio.Task[tuple[int, bytes] | None]] = {}
        waited = []
        for member in self._loaded():
            silent = member.silent
            order = asyncio.create_task(self._asked(member, "POST", "/reset_prefix_cache", admin=True))
            self._orders.add(order)
            order.add_done_callback(self._orders.discard)
            orders[member.name] = order
            if not silent:
                waited.append(order)
        if waited:
            await asyncio.wait(waited, timeout=_RESET_SECONDS)
        return {name: order.result() if order.done() else None for name, order in orders.items()}

    async def _named(self, exchange: Exchange) -> Member:
        """The model that a body names. Raises InvalidRequest or ModelNotFound."""
        body = await exchange.read_json(self._limits)
        named = convert(await run_sized(len(body), parse, body), _NAMED)
        return await self._catalogue.find(named.model)

    def _loaded(self) -> list[Member]:
        return [member for member in self._fleet.members.values() if member.state is State.LOADED]

    async def _each(self, path: str) -> dict[str, tuple[int, bytes]]:
        """What every model answers that is loaded; one that has no time for that has a status of its own."""
        loaded = self._loaded()
        answers = await asyncio.gather(*(self._told(member, path) for member in loaded))
        return {member.name: answer for member, answer in zip(loaded, answers, strict=True) if answer is not None}

    async def _told(self, member: Member, path: str) -> tuple[int, bytes] | None:
        """What a model answers that is loaded; one that has just let somebody wait in vain is not asked."""
        return (AnswerTimeout.status, b"{}") if member.silent else await self._asked(member, "GET", path)

    async def _asked(self, member: Member, method: str, path: str, *, admin: bool = False) -> tuple[int, bytes] | None:
        """The status and body of a model's answer; None where its process is on its way out."""
        if (child := member.child) is None:
            return None
        try:
            async with asyncio.timeout(_SECONDS):
                answer = await ask(child.door, method, path, admin=admin)
            member.heard(True)
            return answer
        except TimeoutError:
            member.heard(False)
            return AnswerTimeout.status, b"{}"
        except LOST:
            return None


def _served(entry: Entry) -> Served:
    return Served(entry["id"], entry["created"], entry.get("max_model_len"))
