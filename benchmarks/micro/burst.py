"""How many prompt tokens are computed when many requests come at once behind one system prompt, engine only.

    python -m benchmarks.micro.burst [--model NAME] [--requests N] [--prefix-tokens N] [--suffix-tokens N]

Two waves, the second once the first has been answered. Counts, not times: every run gives the same.
"""

from __future__ import annotations

import argparse
import asyncio
from array import array

from benchmarks.micro.cache import ask, prompt, settled, start
from benchmarks.workload import resolve_model


async def measure(options: argparse.Namespace) -> None:
    path, _ = resolve_model(options.model)
    n, prefix = options.requests, prompt("prefix", options.prefix_tokens)
    engine = start(path, 2**30, 2 * n * (len(prefix) + options.suffix_tokens + options.tokens + 256), n)
    for wave, needed in enumerate((len(prefix) + n * options.suffix_tokens, n * options.suffix_tokens)):
        before = engine.counters()["prompt_tokens"]
        prompts = [array("i", prefix + prompt((wave, k), options.suffix_tokens)) for k in range(n)]
        await asyncio.gather(*(ask(engine, tokens, options.tokens) for tokens in prompts))
        await settled(engine)
        computed = engine.counters()["prompt_tokens"] - before
        print(
            f"wave {wave + 1}: {sum(map(len, prompts))} prompt tokens asked, {computed:.0f} computed, "
            f"{computed / needed:.3f} of the {needed} that are new"
        )
    await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a tiny model's name, smollm2 or the path of a GGUF")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prefix-tokens", type=int, default=650)
    parser.add_argument("--suffix-tokens", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
