"""What the prefix cache costs and gives, in one process, engine only.

    python -m benchmarks.micro.cache [--model NAME] [--conversations N] [--prompt-tokens N] [--ram-mb N] [--pairs N]

Three figures, each from measurements that take turns:
* throughput of 16 streams whose prompts have nothing in common (tokens per second of CPU time), with the cache on ÷
  with it off;
* after N different conversations with more states than fit: the speed of a running answer ÷ that of a fresh engine,
  and the growth of resident memory ÷ the budget;
* the time to the first token of a conversation that is continued ÷ that of computing it, for those still kept.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import time
from array import array
from pathlib import Path
from statistics import median, quantiles

from benchmarks.workload import PROMPT_IDS, resolve_model
from llamafast.config import CacheConfig, Config, ModelConfig
from llamafast.engine.engine import Engine
from llamafast.engine.load import load_engine
from llamafast.engine.types import Plan, SamplingParams

STREAMS = 16
ANSWER = 128


def start(path: Path, ram_bytes: int, n_ctx: int) -> Engine:
    model = ModelConfig(path=str(path), n_ctx=n_ctx, n_seq_max=STREAMS, threads=1)
    engine = load_engine(Config(model=model, cache=CacheConfig(ram_bytes=ram_bytes)), path)
    engine.start()
    return engine


def prompt(name: object, n_tokens: int) -> array[int]:
    return array("i", random.Random(str(name)).choices(PROMPT_IDS, k=n_tokens))


async def ask(engine: Engine, tokens: array[int], max_tokens: int) -> tuple[float, float, int]:
    """(seconds to the first token, seconds to the last one, cached tokens)"""
    started = time.perf_counter()
    greedy = SamplingParams(temperature=0)
    generation = engine.submit(Plan(prompts=(tokens,), sampling=greedy, max_tokens=max_tokens, ignore_eos=True))
    first = 0.0
    async for _ in generation:
        first = first or time.perf_counter() - started
    return first, time.perf_counter() - started, generation.cached_tokens


async def settled(engine: Engine) -> None:
    for _ in range(10_000):
        if not engine.counters()["running"]:
            return
        await asyncio.sleep(0.001)
    raise TimeoutError("the engine does not come to rest")


async def throughput(engine: Engine, run: int, n_requests: int) -> float:
    """Tokens of closed-loop streams per second of CPU time, which other processes disturb less than wall time."""

    async def stream(k: int) -> None:
        for i in range(n_requests):
            await ask(engine, prompt((run, k, i), 32), ANSWER)

    started = time.process_time()
    await asyncio.gather(*(stream(k) for k in range(STREAMS)))
    return STREAMS * n_requests * ANSWER / (time.process_time() - started)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def spread(ratios: list[float]) -> str:
    """The median and the quarters around it."""
    low, middle, high = quantiles(ratios, n=4)
    return f"{middle:.3f} (quartiles {low:.3f}, {high:.3f})"


async def measure(options: argparse.Namespace) -> None:
    path, _ = resolve_model(options.model)
    n_ctx = max(8192, STREAMS * 256, options.prompt_tokens + 1024)
    budget = options.ram_mb * 2**20
    with_cache, without = start(path, budget, n_ctx), start(path, 0, n_ctx)
    ratios = []
    for run in range(options.pairs + 1):
        engines = [with_cache, without] if run % 2 else [without, with_cache]
        speeds = {engine: await throughput(engine, run, options.requests) for engine in engines}
        if run:  # the first one warms up
            ratios.append(speeds[with_cache] / speeds[without])
    print(f"throughput, cache on ÷ off, no hits: {spread(ratios)}")
    await with_cache.close()

    gc.collect()
    full = start(path, budget, n_ctx)
    await ask(full, prompt("warm", options.prompt_tokens), 64)
    conversations = [prompt(("conversation", k), options.prompt_tokens) for k in range(options.conversations)]
    empty = resident_bytes()
    for tokens in conversations:
        await ask(full, tokens, 16)
    await settled(full)
    counters = full.counters()
    print(
        f"after {len(conversations)} conversations: {counters['cache_states']:.0f} states, "
        f"{counters['cache_bytes'] / 2**20:.1f} of {options.ram_mb} MiB, "
        f"{counters['evictions_budget']:.0f} evictions"
    )
    print(f"growth of resident memory ÷ budget: {(resident_bytes() - empty) / budget:.3f}")
    speeds: dict[Engine, list[float]] = {full: [], without: []}
    for pair in range(options.pairs):
        for engine in [full, without] if pair % 2 else [without, full]:
            first, last, _ = await ask(engine, prompt(("speed", pair), 32), 512)
            speeds[engine].append(511 / (last - first))
    ratios = [a / b for a, b in zip(speeds[full], speeds[without], strict=True)]
    print(f"speed of a running answer, full ÷ fresh: {spread(ratios)}")

    kept, costs = 0, []
    for tokens in reversed(conversations):
        follow_up = array("i", [*tokens, 40])
        first, _, cached = await ask(full, follow_up, 1)
        if cached >= len(tokens):
            kept += 1
            if kept <= options.pairs * 4:
                computed, _, _ = await ask(without, follow_up, 1)
                costs.append(first / computed)
    print(f"{kept} conversations are still kept; returning ÷ computing: {median(costs):.3f} (at most {max(costs):.3f})")
    for engine in (full, without):
        await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="tiny-llama-chain", help="a tiny model's name, smollm2 or the path of a GGUF"
    )
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--prompt-tokens", type=int, default=2000, help="of a conversation")
    parser.add_argument("--ram-mb", type=int, default=64, help="budget of the cache in MiB")
    parser.add_argument("--requests", type=int, default=4, help="a stream's, in a measurement of the throughput")
    parser.add_argument("--pairs", type=int, default=41)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
