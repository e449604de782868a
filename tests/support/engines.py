"""Small engines over real tiny models: their configs, plans for them, and what comes of these."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llamafast._core.model import Model
from llamafast.config import CacheConfig, Config, ModelConfig, SchedulerConfig, ServerConfig
from llamafast.engine.load import load_model
from llamafast.engine.model_params import model_params
from llamafast.engine.types import Plan, SamplingParams

GREEDY = SamplingParams(temperature=0)


def config(
    path, *, max_queue=512, ram_bytes=0, prefill_chunk=None, priorities=False, disk_cache=None, **model
) -> Config:
    # random weights make near-ties, which ggml's flash attention and 16-bit keys and values decide by how steps are cut
    exact = {"flash_attn": False, "type_k": 0, "type_v": 0}
    settings = {"path": str(path), "n_ctx": 512, "n_seq_max": 4, "threads": 1} | exact
    return Config(
        model=ModelConfig(**settings | model),
        server=ServerConfig(max_queue=max_queue),
        cache=CacheConfig(ram_bytes=ram_bytes),
        scheduler=SchedulerConfig(prefill_chunk=prefill_chunk, priorities=priorities),
        disk_cache=disk_cache,
    )


def loaded(config: ModelConfig, path: Path) -> Model:
    """A model as a server has it."""
    return load_model(config, path, model_params(config, path).params)


def plan(*prompt, **options):
    return Plan(prompts=(array("i", prompt),), **{"sampling": GREEDY, "max_tokens": 8} | options)


async def settled(engine):
    """The last Event leaves before the engine thread has tidied up."""
    async with asyncio.timeout(30):
        while engine.counters()["running"]:
            await asyncio.sleep(0.001)


class StandingRunner:
    """A Runner that computes one step after another until ``when`` holds, and goes on once it is let ``go``."""

    def __init__(self, runner, when):
        self._runner, self._when = runner, when
        self.stands, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def run(self, max_steps):
        if self.go.is_set():
            return self._runner.run(max_steps)
        if self._when():
            self.stands.set()
            assert self.go.wait(60), "nobody let it go on"
        return self._runner.run(1)


@asynccontextmanager
async def standing(engine: Any, when: Callable[[], object]) -> AsyncIterator[None]:
    """Nothing is computed in the block: the engine thread stands before the first step at which ``when`` holds. What a
    test does while something runs does not have to be quicker than that, then."""
    runner = engine._worker.runner
    one = engine._worker.runner = StandingRunner(runner, when)
    try:
        engine._worker.wake()
        assert await asyncio.to_thread(one.stands.wait, 30)
        yield
    finally:
        one.go.set()
        engine._worker.runner = runner


async def collect(generation):
    texts = {}
    async for batch in generation:
        for event in batch:
            text, _ = texts.get(event.index, ("", None))
            texts[event.index] = (text + event.text, event.finish_reason)
    return [texts[index] for index in sorted(texts)]
