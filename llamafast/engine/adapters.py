"""Low-rank adapters: which there are, and which of them a request has.

A group is a set of adapters with their scales. Sequences of one group may be computed beside those of any other where
CPUs compute (``_core/adapters.pyx``); none shares what another one has computed.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, KeysView
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from llamafast._core.adapters import MAX_GROUPS, Adapter
from llamafast.config import MAX_LORAS, LoraConfig
from llamafast.config.names import answers_to
from llamafast.engine.adapter_info import AdapterInfo, AdapterUse
from llamafast.engine.prefix_key import Adapter as KeyAdapter
from llamafast.engine.queue_limits import Stay
from llamafast.errors import AdapterInUse, AdapterNotFound, ConfigError, InvalidRequest, ModelNotFound, QueueFull

logger = logging.getLogger(__name__)

# Scales are multiples of this: 64 clients with 64 scales are not to need as many groups.
STEPS = 64
Members = tuple[tuple[int, float], ...]


class AdapterHome(Protocol):
    """What computes with adapters."""

    def define(self, number: int, members: list[tuple[Adapter, float]]) -> None:
        """What a group that nobody has stands for. Event loop."""

    def load(self, config: LoraConfig, path: Path) -> LoadedAdapter:
        """Any thread. Raises ConfigError."""

    def forget(self, adapter: LoadedAdapter) -> Awaitable[None]:
        """Let go of one that nobody has, and of what was computed with it. Raises EngineUnavailable."""


@dataclass(eq=False)
class LoadedAdapter:
    """``scale`` is for who asks for it by ``name``; whoever does not choose has it with the scale ``applied``. One with
    an ``invocation``, which are tokens, changes only what comes from there on. ``task_name`` and ``prompt_prefix`` its
    file says for whoever asks. ``n_requests`` have had it."""

    name: str | None
    path: Path
    scale: float
    applied: float
    digest: bytes
    adapter: Adapter
    invocation: tuple[int, ...] = ()
    task_name: str = ""
    prompt_prefix: str = ""
    n_requests: int = 0


class AdapterGroup:
    """Held by the sequences that have it; the core knows it by its ``number``, 0 for no adapters."""

    def __init__(self, number: int, key: tuple[KeyAdapter, ...], ids: tuple[int, ...]) -> None:
        self.number = number
        self.key = key
        self.ids = ids


NO_ADAPTERS = AdapterGroup(0, (), ())


class Applied(NamedTuple):
    """What a prompt has: ``group``, and with ``invoked_at`` that from this token on and ``before`` in front of it."""

    group: AdapterGroup = NO_ADAPTERS
    invoked_at: int | None = None
    before: AdapterGroup = NO_ADAPTERS


class Adapters:
    """All that are loaded, by ids that are places in the config or come after them, none of them twice, and the groups
    that sequences have. Event loop.

    ``reserved`` are the model's own names and patterns of them, ``there`` gives the requests that have not ended.
    """

    def __init__(
        self,
        loaded: Iterable[LoadedAdapter],
        home: AdapterHome | None,
        reserved: Collection[str] = (),
        there: Callable[[], Iterable[Stay]] = tuple,
    ) -> None:
        self._loaded = dict(enumerate(loaded))
        self._next_id = len(self._loaded)
        self._ids = {one.name: id for id, one in self._loaded.items() if one.name is not None}
        self._home = home
        self._reserved = reserved
        self._there = there
        self._loading: set[str] = set()
        self._free = list(range(MAX_GROUPS - 1, 0, -1))
        self._groups: weakref.WeakValueDictionary[Members, AdapterGroup] = weakref.WeakValueDictionary()

    @property
    def names(self) -> KeysView[str]:
        """Those that a request may ask for, now and later."""
        return self._ids.keys()

    def listed(self) -> list[AdapterInfo]:
        return [
            AdapterInfo(id, one.name, str(one.path), one.applied, one.invocation, one.task_name, one.prompt_prefix)
            for id, one in sorted(self._loaded.items())
        ]

    def apply(self, chosen: Iterable[tuple[int, float]]) -> None:
        scales = self._scales(chosen)
        for id, one in self._loaded.items():
            one.applied = scales.get(id, 0.0)

    async def load(self, name: str, path: Path, scale: float = 1.0) -> None:
        if self._home is None:
            raise InvalidRequest("`server.lora_dir` is not set: no adapters are loaded while the server runs")
        if name in self._reserved or name in self._ids or name in self._loading:
            raise InvalidRequest(f"the name {name!r} is taken", param="lora_name")
        if len(self._loaded) + len(self._loading) >= MAX_LORAS:
            raise InvalidRequest(f"{MAX_LORAS} adapters are loaded, and no more are served")
        self._loading.add(name)
        try:
            config = LoraConfig(path=str(path), name=name, scale=scale)
            one = await asyncio.to_thread(self._home.load, config, path)
        except ConfigError as error:
            raise InvalidRequest(str(error), param="lora_path") from error
        finally:
            self._loading.remove(name)
        id, self._next_id = self._next_id, self._next_id + 1
        self._loaded[id] = one
        self._ids[name] = id
        logger.info("adapter  %d: %s, scale %g, for requests for %s", id, path.name, scale, name)

    async def unload(self, name: str) -> None:
        if (id := self._ids.get(name)) is None:
            raise AdapterNotFound(name)
        if any(id in request.adapter_ids for request in self._there()):
            raise AdapterInUse(name)
        for members in [members for members in list(self._groups) if id in dict(members)]:
            self._groups.pop(members, None)  # the engine thread may have dropped the last that had it
        # from here on nobody can ask for it
        del self._ids[name]
        one = self._loaded.pop(id)
        assert self._home is not None, "it has adapters"
        await self._home.forget(one)
        logger.info("adapter  %d: %s is not served any more", id, name)

    def uses(self) -> list[AdapterUse]:
        running: Counter[int] = Counter()
        waiting: Counter[int] = Counter()
        for request in self._there():
            (running if request.has_begun else waiting).update(request.adapter_ids)
        return [
            AdapterUse(id, one.name, one.n_requests, running[id], waiting[id])
            for id, one in sorted(self._loaded.items())
        ]

    def applied(
        self, prompts: Iterable[array[int]], model: str = "", chosen: Iterable[tuple[int, float]] = ()
    ) -> list[Applied]:
        """To each prompt of a request that names ``model`` and has ``chosen`` adapters by their ids, each with its
        scale. An activated adapter changes what comes from the last place on where its invocation is, and nothing of a
        prompt that has none.

        Raises InvalidRequest for an id that there is not or that is chosen twice and for a prompt that invokes several,
        ModelNotFound for a name that there is not any more, QueueFull where too many groups are in use.
        """
        members = self._members(model, chosen)
        activated = [one for one in members if self._loaded[one[0]].invocation]
        if not activated:
            group = self._group(members)
            return [Applied(group) for _ in prompts]
        plain = tuple(one for one in members if one not in activated)
        return [self._invoked(prompt, plain, activated) for prompt in prompts]

    def group(self, model: str = "", chosen: Iterable[tuple[int, float]] = ()) -> AdapterGroup:
        """The same for inputs that become vectors: of activated adapters those that everybody has leave them as they
        are, and to ask for one is an InvalidRequest."""
        chosen = tuple(chosen)
        members = self._members(model, chosen)
        asked = {id for id, _ in chosen} | {id for name, id in self._ids.items() if name == model}
        for id, _ in members:
            if self._loaded[id].invocation and id in asked:
                raise InvalidRequest(
                    f"the adapter {id} is an activated one (aLoRA): it is for text that is generated, not for vectors",
                    param="model" if id == self._ids.get(model) else "lora",
                )
        return self._group(tuple(one for one in members if not self._loaded[one[0]].invocation))

    def _members(self, model: str, chosen: Iterable[tuple[int, float]]) -> Members:
        if model and model not in self._ids and not answers_to(model, self._reserved):
            raise ModelNotFound(f"the model {model[:128]!r} does not exist", param="model")
        asked = self._scales(chosen)
        # whoever lists some has no others, as llama-server has it
        scales = {} if asked else {id: one.applied for id, one in self._loaded.items()}
        if (named := self._ids.get(model)) is not None:
            scales[named] = self._loaded[named].scale
        scales |= asked
        return tuple((id, rounded(scale)) for id, scale in sorted(scales.items()) if rounded(scale))

    def _invoked(self, prompt: array[int], plain: Members, activated: list[tuple[int, float]]) -> Applied:
        places = {one: last_place(prompt, self._loaded[one[0]].invocation) for one in activated}
        found = [(one, at) for one, at in places.items() if at >= 0]
        if len(found) > 1:
            ids = ", ".join(str(id) for (id, _), _ in found)
            raise InvalidRequest(
                f"the prompt invokes several activated adapters ({ids}), and a request may have one of them: choose "
                "with `lora`",
                param="lora",
            )
        before = self._group(plain)
        if not found:
            return Applied(before)
        ((one, at),) = found
        return Applied(self._group(tuple(sorted((*plain, one)))), at, before)

    def _group(self, members: Members) -> AdapterGroup:
        if not members:
            return NO_ADAPTERS
        group = self._groups.get(members)
        if group is None:
            group = self._groups[members] = self._new(members)
        return group

    def count(self, ids: Iterable[int]) -> None:
        """A request has begun that has these."""
        for id in ids:
            self._loaded[id].n_requests += 1

    def _scales(self, chosen: Iterable[tuple[int, float]]) -> dict[int, float]:
        """By id. Raises InvalidRequest for one that there is not, and for one that is there twice: of two scales one
        would be lost."""
        scales: dict[int, float] = {}
        for id, scale in chosen:
            if id not in self._loaded:
                raise InvalidRequest(f"`lora`: there is no adapter {id}", param="lora")
            if id in scales:
                raise InvalidRequest(f"`lora`: the adapter {id} is there twice", param="lora")
            scales[id] = scale
        return scales

    def _new(self, members: Members) -> AdapterGroup:
        if not self._free:
            raise QueueFull("too many sets of adapters are in use")
        number = self._free.pop()
        chosen = [(self._loaded[id], scale) for id, scale in members]
        try:
            assert self._home is not None, "it has adapters"
            self._home.define(number, [(one.adapter, scale) for one, scale in chosen])
        except BaseException:
            self._free.append(number)
            raise
        key = tuple(KeyAdapter(one.digest, scale) for one, scale in chosen)
        group = AdapterGroup(number, key, tuple(id for id, _ in members))
        weakref.finalize(group, self._free.append, number).atexit = False
        return group


def rounded(scale: float) -> float:
    return round(scale * STEPS) / STEPS


def last_place(prompt: array[int], wanted: tuple[int, ...]) -> int:
    """Where ``wanted``, some tokens, begin for the last time in a prompt; -1: nowhere."""
    tokens, needle, size = prompt.tobytes(), array(prompt.typecode, wanted).tobytes(), prompt.itemsize
    at = tokens.rfind(needle)
    while at % size and at > 0:
        at = tokens.rfind(needle, 0, at + len(needle) - 1)
    return at // size
