"""What a server of several models says of itself, and how an administrator loads and unloads them."""

from __future__ import annotations

import asyncio
import shutil

import msgspec

from llamafast import metrics
from llamafast.api.body_size import BodyLimits
from llamafast.api.decode import convert, parse
from llamafast.api.http import Exchange
from llamafast.api.messages.errors import VERSION
from llamafast.api.messages.models import Served, model_page, model_told
from llamafast.api.system import BY_API, reply_not_ready
from llamafast.config import PoolConfig
from llamafast.errors import AnswerTimeout
from llamafast.pool.catalogue import Catalogue, Entry
from llamafast.pool.division import disk_folder
from llamafast.pool.exposition import merged
from llamafast.pool.fleet import Fleet
from llamafast.pool.member import Member, State
from llamafast.pool.passing import LOST, ask

# What a child has for a probe, a scrape or a reset.
_SECONDS = 5.0


class _Named(msgspec.Struct):
    model: str


class _Stalled(msgspec.Struct):
    seconds: float = 0.0


class _Freed(msgspec.Struct):
    freed_bytes: int = 0


_NAMED = msgspec.json.Decoder(_Named)


class PoolEndpoints:
    """``draining``: whether new requests should go elsewhere. Nothing here counts as a use of a model."""

    def __init__(self, fleet: Fleet, catalogue: Catalogue, config: PoolConfig, limits: BodyLimits) -> None:
        self._fleet = fleet
        self._catalogue = catalogue
        self._config = config
        self._limits = limits
        self.draining = False

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
        for status, body in (await self._each("GET", "/healthz")).values():
            if status != 200:
                stalled = max(stalled, msgspec.json.decode(body, type=_Stalled).seconds or _SECONDS)
        if stalled:
            await reply_not_ready(exchange, "stalled", seconds=stalled)
        else:
            await exchange.reply_json({"status": "ok"})

    async def metrics(self, exchange: Exchange) -> None:
        told = await self._each("GET", "/metrics")
        texts = {name: body for name, (status, body) in told.items() if status == 200}
        # lines by the thousand are read: not on the event loop
        members = tuple(self._fleet.members.values())
        body, content_type = await asyncio.to_thread(merged, texts, metrics.render_process(), members)
        await exchange.reply(200, body, content_type.encode())

    async def reset_prefix_cache(self, exchange: Exchange) -> None:
        """Forget what finished requests have left, of models that are not loaded too; the body is not read."""

        async def reset() -> None:
            told = await self._each("POST", "/reset_prefix_cache", admin=True)
            freed = sum(msgspec.json.decode(body, type=_Freed).freed_bytes for _, body in told.values())
            if (disk := self._config.disk_cache) is not None:
                for member in self._fleet.members.values():
                    if member.child is None:
                        await asyncio.to_thread(shutil.rmtree, disk_folder(disk, member.config), ignore_errors=True)
            await exchange.reply_json({"freed_bytes": freed})

        await exchange.until_disconnect(reset())

    async def _named(self, exchange: Exchange) -> Member:
        """The model that a body names. Raises InvalidRequest or ModelNotFound."""
        named = convert(parse(await exchange.read_json(self._limits)), _NAMED)
        return await self._catalogue.find(named.model)

    async def _each(self, method: str, path: str, *, admin: bool = False) -> dict[str, tuple[int, bytes]]:
        """What every model answers that is loaded; one that has no time for that has a status of its own."""

        async def one(member: Member) -> tuple[int, bytes] | None:
            assert member.child is not None
            if member.silent and method == "GET":
                return AnswerTimeout.status, b"{}"
            try:
                async with asyncio.timeout(_SECONDS):
                    answer = await ask(member.child.door, method, path, admin=admin)
                member.heard(True)
                return answer
            except TimeoutError:
                member.heard(False)
                return AnswerTimeout.status, b"{}"
            except LOST:  # it is on its way out
                return None

        loaded = [member for member in self._fleet.members.values() if member.state is State.LOADED]
        answers = await asyncio.gather(*map(one, loaded))
        return {member.name: answer for member, answer in zip(loaded, answers, strict=True) if answer is not None}


def _served(entry: Entry) -> Served:
    return Served(entry["id"], entry["created"], entry.get("max_model_len"))
