"""The contexts that compute with adapters: ``adapters.AdapterHome``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from llamafast._core.adapters import Adapter
from llamafast._core.context import Context
from llamafast.config import LoraConfig
from llamafast.engine.adapter_files import AdapterFiles
from llamafast.engine.adapters import LoadedAdapter
from llamafast.engine.between_steps import BetweenSteps


class AdapterContexts:
    """Contexts of one model; ``forget_prefixes`` forgets what was computed with an adapter of that digest."""

    def __init__(
        self,
        contexts: Iterable[Context],
        files: AdapterFiles,
        between_steps: BetweenSteps,
        forget_prefixes: Callable[[bytes], object],
    ) -> None:
        # once nobody steps yet: who asks for its groups changes how a context computes
        self._contexts = tuple(contexts)
        self._groups = tuple(context.adapters for context in self._contexts)
        self._files = files
        self._between_steps = between_steps
        self._forget_prefixes = forget_prefixes

    def define(self, number: int, members: list[tuple[Adapter, float]]) -> None:
        for groups in self._groups:
            groups.define(number, members)

    def load(self, config: LoraConfig, path: Path) -> LoadedAdapter:
        return self._files.load(self._contexts[0].model, config, path)

    async def forget(self, adapter: LoadedAdapter) -> None:
        def forget() -> None:
            for groups in self._groups:
                groups.forget(adapter.adapter)
            self._forget_prefixes(adapter.digest)

        await self._between_steps.do(forget)
        # its memory may wait for a step to be given back
        await asyncio.to_thread(adapter.adapter.release)
