"""Which model a name means, and what clients are told of all models.

The config's names are known from the start: of models, their aliases and adapters. Adapters may come and go while a
model is loaded, so it is asked for its names then, and whenever a name is nobody's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from llamafast.config.names import answers_to, is_pattern, strictness
from llamafast.errors import InvalidRequest, ModelNotFound
from llamafast.pool.member import Member, State
from llamafast.pool.passing import LOST, ask

log = logging.getLogger(__name__)

# A child that does not tell its names so soon has other things to do.
_SECONDS = 5.0

Entry = dict[str, Any]


class _List(msgspec.Struct):
    data: list[Entry]


_DECODER = msgspec.json.Decoder(_List)


class Catalogue:
    """Exact names are meant before patterns, and of these the one with most characters of its own."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._members = tuple(members)
        self._created = int(time.time())
        self._exact = {name: member for member in self._members for name in _own_names(member) if not is_pattern(name)}
        patterns = [(alias, member) for member in self._members for alias in member.config.aliases if is_pattern(alias)]
        self._patterns = sorted(patterns, key=lambda one: -strictness(one[0]))
        self._told: dict[str, list[Entry]] = {}
        self._learned: dict[str, Member] = {}
        self._taken: set[str] = set()
        self._asking: asyncio.Future[list[None]] | None = None

    async def find(self, name: str | None) -> Member:
        """Whose name it is; none is that of the only model. Raises InvalidRequest or ModelNotFound."""
        if not name:
            if len(self._members) == 1:
                return self._members[0]
            raise InvalidRequest("`model` is required: this server has several", param="model")
        if (member := self._known(name)) is None:
            await self.refresh()
            member = self._known(name)
        if member is None:
            names = ", ".join(repr(one) for member in self._members for one in (member.name, *member.config.aliases))
            raise ModelNotFound(f"the model {name[:128]!r} does not exist; this server has {names}", param="model")
        return member

    async def find_by_adapter(self, name: str) -> Member | None:
        """The model that has an adapter of that name now; None: none has one."""
        await self.refresh()
        return self._learned.get(name)

    @contextmanager
    def taking(self, name: str, member: Member) -> Iterator[None]:
        """Until it is known what has become of an adapter that ``member`` is to have, nobody else takes its name.
        Raises InvalidRequest for one that another model has already, or that somebody is about to take."""
        self.check_free(name, member)
        if name in self._taken:
            raise InvalidRequest(f"an adapter is loaded under the name {name[:128]!r} already", param="lora_name")
        self._taken.add(name)
        try:
            yield
        finally:
            self._taken.remove(name)

    def check_free(self, name: str, member: Member) -> None:
        """Raises InvalidRequest for a name that another model has already."""
        owner = self._exact.get(name) or self._learned.get(name)
        if owner is not None and owner is not member:
            raise InvalidRequest(f"{name[:128]!r} is a name of the model {owner.name!r} already", param="lora_name")

    async def refresh(self) -> None:
        """Ask every model that answers for its names, once for all who want to know at the same time."""
        if self._asking is None or self._asking.done():
            loaded = [member for member in self._members if member.state is State.LOADED and not member.silent]
            self._asking = asyncio.gather(*map(self.learn, loaded))
        await asyncio.shield(self._asking)

    async def learn(self, member: Member) -> None:
        """Ask it for its names; where it does not answer, what was known has to do."""
        if (child := member.child) is None:
            return
        with suppress(*LOST):
            try:
                async with asyncio.timeout(_SECONDS):
                    status, body = await ask(child.door, "GET", "/v1/models")
            except TimeoutError:
                log.warning("models   %s does not tell its names", member.name)
                member.heard(False)
                return
            member.heard(True)
            if status == 200:
                self._told[member.name] = _DECODER.decode(body).data
                self._index()

    def forget(self, member: Member) -> None:
        """It has ended, and with it the adapters that only it had."""
        known = set(_own_names(member))
        self._told[member.name] = [entry for entry in self._told.get(member.name, ()) if entry["id"] in known]
        self._index()

    def entries(self) -> list[Entry]:
        """Of /v1/models: each model, then its adapters."""
        return [entry for member in self._members for entry in self._entries(member)]

    def entry(self, name: str) -> Entry:
        """Raises ModelNotFound."""
        if (entry := next((one for one in self.entries() if one["id"] == name), None)) is not None:
            return entry
        if (member := self._known(name)) is not None:
            return next(iter(self._entries(member)))
        raise ModelNotFound(f"the model {name[:128]!r} does not exist", param="model")

    def _known(self, name: str) -> Member | None:
        if (member := self._exact.get(name) or self._learned.get(name)) is not None:
            return member
        return next((one for pattern, one in self._patterns if answers_to(name, (pattern,))), None)

    def _index(self) -> None:
        self._learned = {entry["id"]: member for member in self._members for entry in self._told.get(member.name, ())}

    def _entries(self, member: Member) -> Iterable[Entry]:
        status: Entry = {"value": member.state.word}
        if member.failed:
            status |= {"failed": True}
        if member.exit_code:
            status |= {"exit_code": member.exit_code}
        told = {entry["id"]: entry for entry in self._told.get(member.name, ())}
        loras = [lora.name for lora in member.config.loras if lora.name is not None]
        for name in dict.fromkeys((member.name, *loras, *told)):
            entry = told.get(name) or self._unloaded(member, name)
            yield entry | {"status": status}

    def _unloaded(self, member: Member, name: str) -> Entry:
        entry: Entry = {"id": name, "object": "model", "created": self._created, "owned_by": "llamafast"}
        if name != member.name:
            return entry | {"parent": member.name}
        return entry | ({"aliases": list(member.config.aliases)} if member.config.aliases else {})


def _own_names(member: Member) -> Iterable[str]:
    yield member.name
    yield from member.config.aliases
    yield from (lora.name for lora in member.config.loras if lora.name is not None)
