"""What adapters cost: those that nobody asks for, one that all have, and several side by side, in pairs.

    python -m benchmarks.micro.adapters [--streams N] [--pairs N]

SmolLM2-135M in this process, one compute thread, adapters of ranks 4, 16 and 8 on queries and values
(recipes/tiny_lora.py). Every figure is the CPU time of an engine that has no adapters ÷ that of one that has some, for
the same tokens, in the same pair.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from array import array

from benchmarks.report import conditions, print_table, spread
from benchmarks.workload import resolve_model
from llamafast.config import CacheConfig, Config, LoraConfig, ModelConfig
from llamafast.engine.engine import Engine
from llamafast.engine.load import load_engine
from llamafast.engine.types import Plan, SamplingParams
from recipes import tiny_lora

NAMES = ("lora-smollm2", "lora-smollm2-2", "lora-smollm2-3")
PROMPT_TOKENS, ANSWER_TOKENS = 32, 96
# which adapters the streams have, in turn
MIXES: dict[str, tuple[tuple[tuple[int, float], ...], ...]] = {
    "nobody has one": ((),),
    "all have the same": (((0, 1.0),),),
    "all have one of rank 16": (((1, 1.0),),),
    "three groups and those without": ((), ((0, 1.0),), ((1, 1.0),), ((2, 1.0),)),
}


def start(path: str, *, adapted: bool) -> Engine:
    files = [tiny_lora.build(name) for name in NAMES] if adapted else []
    loras = tuple(LoraConfig(path=str(file), name=file.stem) for file in files)
    model = ModelConfig(path=path, n_ctx=8192, n_seq_max=32, threads=1, loras=loras)
    engine = load_engine(Config(model=model, cache=CacheConfig(ram_bytes=0)), resolve_model("smollm2")[0], loras=files)
    engine.start()
    return engine


async def seconds(engine: Engine, n_streams: int, mix: tuple[tuple[tuple[int, float], ...], ...], seed: int) -> float:
    """Of CPU; the other engine sleeps."""

    async def answer(k: int) -> None:
        prompt = array("i", ((seed * 1000 + 37 * k + 11 * i) % 40_000 + 100 for i in range(PROMPT_TOKENS)))
        plan = Plan(
            prompts=(prompt,), sampling=SamplingParams(temperature=0), max_tokens=ANSWER_TOKENS, ignore_eos=True,
            lora=mix[k % len(mix)],
        )  # fmt: skip
        async for _ in engine.submit(plan):
            pass

    began = time.process_time()
    await asyncio.gather(*map(answer, range(n_streams)))
    return time.process_time() - began


async def measure(n_streams: int, n_pairs: int) -> list[dict[str, str]]:
    path = str(resolve_model("smollm2")[0])
    plain, adapted = start(path, adapted=False), start(path, adapted=True)
    ratios: dict[str, list[float]] = {name: [] for name in MIXES}
    for pair in range(n_pairs + 1):
        for k, (name, mix) in enumerate(MIXES.items()):
            seed = 10 * pair + k
            order = (plain, adapted) if pair % 2 else (adapted, plain)
            for engine in order:  # one that nobody has any more leaves after some steps
                await seconds(engine, 1, mix if engine is adapted else ((),), seed + 7)
            took = {
                engine: await seconds(engine, n_streams, mix if engine is adapted else ((),), seed) for engine in order
            }
            if pair:  # the first one warms up
                ratios[name].append(took[plain] / took[adapted])
    for engine in (plain, adapted):
        await engine.close()
    return [{"what": name, "÷ no adapters": spread(values, ".3f")} for name, values in ratios.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    print(conditions())
    print_table(asyncio.run(measure(options.streams, options.pairs)))


if __name__ == "__main__":
    main()
