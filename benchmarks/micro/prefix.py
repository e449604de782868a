"""The time to look a prompt up among the prefixes in host RAM, with few and with many of them.

    python -m benchmarks.micro.prefix [--rounds N] [--tokens N] [--asked N ...]

Half of every stored prompt is one of ten system prompts. Every question continues a stored prompt. However many prompts
are stored, as many different questions take turns: ten stay in the CPU's caches, a thousand do not, and nor does what
they are compared with where ten thousand are stored. What comparing alone takes is beside it: one memcmp (bytes ==
bytes) of a copy of the question with a copy of what is stored. No index that looks at every token can be faster.
Medians.
"""

from __future__ import annotations

import argparse
import random
import time
from array import array
from collections.abc import Callable

from llamafast.bench.figures import median
from llamafast.engine.cache import PrefixCache
from llamafast.engine.save_points import PART

SIZES = (10, 10_000)
SYSTEM_PROMPTS = 10
N_VOCAB = 150_000
# So often the sizes take turns.
TURNS = 5


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


class Questions:
    """``n_asked`` different prompts, each of which continues one of the ``n_stored`` that ``cache`` has."""

    def __init__(self, cache: PrefixCache, n_stored: int, n_asked: int, n_tokens: int) -> None:
        self._cache = cache
        self._n_tokens = n_tokens
        numbers = random.Random(1).sample(range(n_stored), min(n_stored, n_asked))
        stored = {number: prompt(number, n_tokens) for number in numbers}
        asked = [stored[numbers[k % len(numbers)]] for k in range(n_asked)]
        self._prompts = [array("i", [*tokens, k]) for k, tokens in enumerate(asked)]
        kept = {number: tokens.tobytes() for number, tokens in stored.items()}
        self._copies = [(tokens.tobytes(), kept[numbers[k % len(numbers)]]) for k, tokens in enumerate(asked)]

    def look_up(self, k: int) -> int:
        return self._cache.find(self._prompts[k], b"", 0)[-1].stop

    def compare(self, k: int) -> int:
        question, kept = self._copies[k]
        return self._n_tokens if question == kept else 0

    def per_thousand(self, ask: Callable[[int], int], rounds: int) -> float:
        """Microseconds per 1,000 tokens."""
        times = []
        for i in range(rounds):
            k = i % len(self._prompts)
            start = time.perf_counter()
            found = ask(k)
            times.append(time.perf_counter() - start)
            if found != self._n_tokens:
                raise AssertionError(f"found {found} of {self._n_tokens} tokens")
        return median(times) * 1e9 / self._n_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=2000, help="length of a stored prompt")
    parser.add_argument("--asked", type=int, nargs="+", default=[10, 1000], help="different prompts to look up")
    arguments = parser.parse_args()
    caches = {size: filled(size, arguments.tokens) for size in SIZES}
    print("  asked   stored   µs per 1,000 tokens   comparing alone")
    for n_asked in arguments.asked:
        questions = {size: Questions(caches[size], size, n_asked, arguments.tokens) for size in SIZES}
        found: dict[int, list[float]] = {size: [] for size in SIZES}
        compared: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(TURNS):
            for size, of in questions.items():
                found[size].append(of.per_thousand(of.look_up, arguments.rounds // TURNS))
                compared[size].append(of.per_thousand(of.compare, arguments.rounds // TURNS))
        for size in SIZES:
            print(f"{n_asked:>7}{size:>9}{median(found[size]):>22.2f}{median(compared[size]):>18.2f}")
        few, many = SIZES
        ratios = [median(times[many]) / median(times[few]) for times in (found, compared)]
        print(f"{'ratio':>16}{ratios[0]:>22.2f}{ratios[1]:>18.2f}")


if __name__ == "__main__":
    main()
