"""The time to choose one token from a row of logits, ours against llama.cpp's sampler chain, on one thread.

    python -m benchmarks.micro.sampler [--rounds N] [--spread S]

Rows are normal with the given standard deviation: flat, so the nucleus is large and both sides do much work. The
chain's time is that of its stages and of copying its ready-made array of candidates; filling that array from the
logits, which it needs for every token, is left out. Ours is the call from Python. Medians.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from benchmarks.llama_chain import Chain, Floats, token_data
from benchmarks.samplers import sampler_of
from llamafast.bench.figures import median

VOCABULARIES = (49_152, 151_936)
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0, "top_p": 1.0},
    "top-k 40, top-p 0.95, min-p 0.05, temperature 0.8": {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
    },
    "min-p 0.05, temperature 1": {"temperature": 1.0, "top_p": 1.0, "min_p": 0.05},
    "top-p 0.95, temperature 1": {"temperature": 1.0, "top_p": 0.95},
    "top-p 0.95, temperature 0.7": {"temperature": 0.7, "top_p": 0.95},
    "typical 0.95, temperature 1": {"temperature": 1.0, "typical_p": 0.95},
    "top-n-sigma 1, temperature 1": {"temperature": 1.0, "top_n_sigma": 1.0},
    "mirostat 2": {"mirostat": 2},
    "all penalties, greedy": {
        "temperature": 0.0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
}


def ours(parameters: dict[str, Any], row: Floats, rounds: int) -> float:
    """Seconds a token; the history grows by one token a round, as it does in use."""
    sampler = sampler_of(len(row), **parameters, seed=1)
    history = np.random.default_rng(1).integers(0, len(row), 1000 + rounds).astype(np.int32)
    work = row.copy()
    times = []
    for i in range(rounds):
        work[:] = row
        start = time.perf_counter()
        sampler.pick(work.data, history[: 1000 + i].data)
        times.append(time.perf_counter() - start)
    return median(times)


def chains(parameters: dict[str, Any], row: Floats, rounds: int) -> float:
    chain = Chain(len(row), **parameters, seed=1)
    chain.accept(np.random.default_rng(1).integers(0, len(row), 64).tolist())
    ready = token_data(row)
    work = ready.copy()
    to, source = work.view(np.uint8), ready.view(np.uint8)  # structured arrays are copied field by field
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        to[:] = source
        chain.apply(work)
        times.append(time.perf_counter() - start)
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="tokens per case (a tenth of it for the chain)")
    parser.add_argument("--spread", type=float, default=3.0, help="standard deviation of the logits")
    arguments = parser.parse_args()
    print(f"{'vocabulary':>10}  {'sampling':<50} {'ours µs':>10} {'chain µs':>10} {'ratio':>8}")
    for n_vocab in VOCABULARIES:
        row = np.random.default_rng(0).normal(0, arguments.spread, n_vocab).astype(np.float32)
        for name, parameters in CASES.items():
            mine = ours(parameters, row, arguments.rounds) * 1e6
            theirs = chains(parameters, row, max(5, arguments.rounds // 10)) * 1e6
            print(f"{n_vocab:>10}  {name:<50} {mine:>10.1f} {theirs:>10.1f} {mine / theirs:>8.4f}", flush=True)


if __name__ == "__main__":
    main()
