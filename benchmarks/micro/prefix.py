"""The time to look a prompt up among the prefixes in host RAM, with few and with many of them.

    python -m benchmarks.micro.prefix [--rounds N] [--tokens N] [--asked N]

Half of every stored prompt is one of ten system prompts. Prompts that continue stored ones take turns:
ten by default, which stay in the CPU's caches; with a thousand the reading of cold memory counts too. Medians.
"""

from __future__ import annotations

import argparse
import random
import time
from array import array
from statistics import median

from llamafast.engine.cache import PART, PrefixCache

SIZES = (10, 10_000)
SYSTEM_PROMPTS = 10
N_VOCAB = 150_000


def prompt(number: int, n_tokens: int) -> array[int]:
    system = random.Random(number % SYSTEM_PROMPTS).choices(range(N_VOCAB), k=n_tokens // 2)
    own = random.Random(-1 - number).choices(range(N_VOCAB), k=n_tokens - n_tokens // 2)
    return array("i", system + own)


def filled(n_prompts: int, n_tokens: int) -> PrefixCache:
    """A cache that has seen the prompts 0 to ``n_prompts`` - 1, saved in parts as the engine does."""
    cache = PrefixCache(2**62)
    for number in range(n_prompts):
        tokens = prompt(number, n_tokens)
        for end in (*range(PART, n_tokens, PART), n_tokens):
            start, stop = cache.unsaved(tokens[:end], b"")
            if stop:
                cache.put(tokens[:stop], b"", b"%d" % start)
    return cache


def lookup_seconds(cache: PrefixCache, prompts: list[array[int]], rounds: int) -> float:
    times = []
    for i in range(rounds):
        tokens = prompts[i % len(prompts)]
        start = time.perf_counter()
        parts = cache.find(tokens, b"", 0)
        times.append(time.perf_counter() - start)
        if parts[-1].stop != len(tokens) - 1:
            raise AssertionError(f"found {parts[-1].stop} of {len(tokens)} tokens")
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=2000, help="length of a prompt")
    parser.add_argument("--asked", type=int, default=10, help="different prompts to look up")
    arguments = parser.parse_args()
    caches = [filled(size, arguments.tokens) for size in SIZES]
    seconds: list[list[float]] = [[] for _ in SIZES]
    for _ in range(5):
        for i, size in enumerate(SIZES):
            asked = [
                array("i", [*prompt(number, arguments.tokens), 7])
                for number in random.Random(1).sample(range(size), min(size, arguments.asked))
            ]
            seconds[i].append(lookup_seconds(caches[i], asked, arguments.rounds // 5))
    medians = [median(times) for times in seconds]
    for size, value in zip(SIZES, medians, strict=True):
        print(f"{size:>7} prompts  {value * 1e6:8.2f} µs  {value * 1e9 / arguments.tokens:8.2f} µs per 1,000 tokens")
    print(f"  ratio          {medians[1] / medians[0]:8.2f}")


if __name__ == "__main__":
    main()
