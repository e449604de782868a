"""Grammars compiled for requests while the event loop goes on."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec.structs import replace

from llamafast.chat.grammar.asked import Ask
from llamafast.chat.grammar.constraints import Compiled, Constraints
from llamafast.chat.grammar.trial import PROCESSES, Attempt
from llamafast.engine.types import Matcher, Plan

# Of grammars that are kept, refused ones too, and of their text: what one takes compiled grows with that.
KEPT = 128
KEPT_BYTES = 4 << 20


class Grammars:
    """Has threads of its own, as many as can be compiled at once: who waits for one keeps nobody from another thread,
    and grammars that take long keep no others waiting.

    Requests that ask for the same at the same time wait for one compilation; it ends with the last of them. What came
    of it is kept by the digest of what was asked, the least recently used go first.
    """

    def __init__(self, constraints: Constraints | None) -> None:
        """None for a model that does not generate: nothing is asked of it."""
        self._constraints = constraints
        self._quick = ThreadPoolExecutor(PROCESSES, thread_name_prefix="grammar")
        self._slow = ThreadPoolExecutor(PROCESSES, thread_name_prefix="slow-grammar")
        self._running: dict[bytes, _Compilation] = {}
        self._kept: OrderedDict[bytes, Compiled] = OrderedDict()
        self._n_bytes = 0

    async def constrained(self, plan: Plan, ask: Ask | None) -> Plan:
        """``plan`` with the matcher of what is asked. Raises InvalidRequest or EngineUnavailable."""
        return plan if ask is None else replace(plan, matcher=await self._matcher(ask))

    async def _matcher(self, ask: Ask) -> Matcher:
        if ask.key in self._kept:
            self._kept.move_to_end(ask.key)
            return self._kept[ask.key].matcher
        one = self._running.get(ask.key)
        if one is None:
            attempt = Attempt()
            one = self._running[ask.key] = _Compilation(self._compiled(ask, attempt), attempt)
        try:
            compiled = await one.result()
        finally:
            if not one.n_waiting:
                # who comes now begins anew
                self._running.pop(ask.key, None)
        self._keep(ask.key, compiled)
        return compiled.matcher

    async def _compiled(self, ask: Ask, attempt: Attempt) -> Compiled:
        assert self._constraints is not None
        loop = asyncio.get_running_loop()
        quick = await loop.run_in_executor(self._quick, self._constraints.quickly, ask, attempt)
        if quick is not None:
            return quick
        return await loop.run_in_executor(self._slow, self._constraints.patiently, ask, attempt)

    def _keep(self, key: bytes, compiled: Compiled) -> None:
        if key in self._kept:
            return
        self._kept[key] = compiled
        self._n_bytes += compiled.n_bytes
        while len(self._kept) > KEPT or (self._n_bytes > KEPT_BYTES and len(self._kept) > 1):
            self._n_bytes -= self._kept.popitem(last=False)[1].n_bytes


class _Compilation:
    """One grammar's, for all requests that wait for it."""

    def __init__(self, work: Coroutine[Any, Any, Compiled], attempt: Attempt) -> None:
        self.n_waiting = 0
        self._task = asyncio.create_task(work)
        self._attempt = attempt
        # also where nobody is left to hear of it
        self._task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def result(self) -> Compiled:
        self.n_waiting += 1
        try:
            await asyncio.wait([self._task])
            return self._task.result()
        finally:
            self.n_waiting -= 1
            if not self.n_waiting and not self._task.done():
                self._attempt.stop()
                self._task.cancel()
