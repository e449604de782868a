"""What the prefix cache costs and gives, in one process, engine only.

    python -m benchmarks.micro.cache [--model NAME] [--conversations N] [--prompt-tokens N] [--ram-mb N] [--pairs N]

The speed of a shared machine varies by half within seconds, so everything is measured in short slices that take turns,
and ratios are taken between neighbours; medians of them, with their quartiles:

* throughput of 16 streams whose prompts have nothing in common, of one engine with the cache on ÷ with it off: tokens
  per second of wall time, and of CPU time, which other processes disturb less;
* the speed of a running answer on an engine whose cache N different conversations have overfilled ÷ on a fresh one. Two
  engines in one process differ by a percent or two for no reason but where their memory lies; so they are compared
  before one of them is filled, too, and the figure is the quotient of both comparisons;
* the growth of resident memory by these conversations ÷ the budget;
* the time to the first token of a conversation that is continued ÷ that of computing it, for each of those still kept,
  asked several times in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import time
from array import array
from pathlib import Path

from benchmarks.workload import PROMPT_IDS, resolve_model
from llamafast.bench.figures import median, percentile
from llamafast.config import CacheConfig, Config, ModelConfig
from llamafast.engine.engine import Engine
from llamafast.engine.load import load_engine
from llamafast.engine.types import Plan, SamplingParams

STREAMS = 16
ANSWER = 128
# how often each conversation comes back
RETURNS = 5


def start(path: Path, ram_bytes: int, n_ctx: int, n_seq_max: int = STREAMS) -> Engine:
    model = ModelConfig(path=str(path), n_ctx=n_ctx, n_seq_max=n_seq_max, threads=1)
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


async def throughput(engine: Engine, run: int) -> tuple[float, float]:
    """Tokens of 16 streams at once per second of wall time and per second of CPU time."""
    prompts = [prompt((run, k), 32) for k in range(STREAMS)]
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask(engine, tokens, ANSWER) for tokens in prompts))
    await settled(engine)
    n = STREAMS * ANSWER
    return n / (time.perf_counter() - wall), n / (time.process_time() - cpu)


async def speed_ratios(above: Engine, below: Engine, pairs: int, name: str) -> list[float]:
    """Tokens per second of one answer at a time on one engine ÷ on the other, in slices that take turns."""
    ratios = []
    for pair in range(pairs):
        speeds = {}
        for engine in [above, below] if pair % 2 else [below, above]:
            first, last, _ = await ask(engine, prompt((name, pair), 32), ANSWER)
            speeds[engine] = (ANSWER - 1) / (last - first)
        ratios.append(speeds[above] / speeds[below])
    return ratios


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def spread(ratios: list[float]) -> str:
    """The median and the quarters around it."""
    low, high = percentile(ratios, 25), percentile(ratios, 75)
    return f"{median(ratios):.3f} (quartiles {low:.3f}, {high:.3f})"


async def measure_throughput(path: Path, budget: int, n_ctx: int, pairs: int) -> None:
    engine = start(path, budget, n_ctx)
    cache = engine._worker.transfer._cache
    walls, cpus = [], []
    for run in range(pairs + 1):
        speeds = {}
        for ram_bytes in [budget, 0] if run % 2 else [0, budget]:
            cache.budget = ram_bytes
            speeds[ram_bytes] = await throughput(engine, 2 * run + bool(ram_bytes))
        if run:  # the first one warms up
            walls.append(speeds[budget][0] / speeds[0][0])
            cpus.append(speeds[budget][1] / speeds[0][1])
    print(f"throughput, cache on ÷ off, no hits, by wall time: {spread(walls)}")
    print(f"throughput, cache on ÷ off, no hits, by CPU time: {spread(cpus)}")
    await engine.close()


async def measure_memory(path: Path, options: argparse.Namespace, budget: int, n_ctx: int) -> None:
    full, fresh, computing = start(path, budget, n_ctx), start(path, budget, n_ctx), start(path, 0, n_ctx)
    for engine in (full, fresh, computing):
        await ask(engine, prompt("warm", options.prompt_tokens), 64)
    before = await speed_ratios(full, fresh, 3 * options.pairs, "before")
    gc.collect()
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
    after = await speed_ratios(full, fresh, 3 * options.pairs, "after")
    print(f"speed of a running answer, both fresh: {spread(before)}")
    print(f"speed of a running answer, full ÷ fresh: {spread(after)}")
    print(f"quotient of these medians: {median(after) / median(before):.3f}")
    await measure_returns(full, computing, conversations)
    for engine in (full, fresh, computing):
        await engine.close()


async def measure_returns(full: Engine, computing: Engine, conversations: list[array[int]]) -> None:
    kept = []
    for tokens in reversed(conversations):
        follow_up = array("i", [*tokens, 40])
        _, _, cached = await ask(full, follow_up, 1)
        if cached >= len(tokens):
            kept.append(follow_up)
    returns: list[list[float]] = [[] for _ in kept]
    for _ in range(RETURNS):
        for follow_up, ratios in zip(kept, returns, strict=True):
            returned, _, _ = await ask(full, follow_up, 1)
            computed, _, _ = await ask(computing, follow_up, 1)
            ratios.append(returned / computed)
    medians = [median(ratios) for ratios in returns]
    print(f"{len(kept)} conversations are still kept; returning ÷ computing, the median of each: {spread(medians)}")
    print(f"  of the dearest: {max(medians):.3f}; of all {RETURNS * len(kept)} returns: {max(map(max, returns)):.3f}")


async def measure(options: argparse.Namespace) -> None:
    path, _ = resolve_model(options.model)
    n_ctx = max(8192, STREAMS * 256, options.prompt_tokens + 1024)
    budget = options.ram_mb * 2**20
    # first, as memory that was used and freed would not grow again
    await measure_memory(path, options, budget, n_ctx)
    await measure_throughput(path, budget, n_ctx, options.pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="tiny-llama-chain", help="a tiny model's name, smollm2 or the path of a GGUF"
    )
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--prompt-tokens", type=int, default=2000, help="of a conversation")
    parser.add_argument("--ram-mb", type=int, default=64, help="budget of the cache in MiB")
    parser.add_argument("--pairs", type=int, default=121, help="of throughput; three times as many of single answers")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
