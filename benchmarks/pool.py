"""What the parent of several models costs: the same model alone and behind it, in turns.

    python -m benchmarks.pool [--model smollm2] [--pairs N] [--asks N] [--streams N]

Both servers are up all the time, and whichever is not asked is idle. A pair is a round on each of them, one right after
the other, the first of them by turns. TTFT is that of requests that are sent one at a time; tokens per second are those
of streams at once. CPU is that of a server and all its children.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks.pinning import DEFAULT_PIN, bound_to, cores_of
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import Workload, resolve_model
from llamafast.bench.address import loopback
from llamafast.bench.client import load
from llamafast.bench.figures import Exchange, median

LIMIT_S = 120.0


class Round(NamedTuple):
    """Medians of one round on one server; ``cpu_s`` is for the streams."""

    ttft_s: float
    tokens_per_s: float
    cpu_s: float


def checked(exchanges: list[Exchange]) -> list[Exchange]:
    if failed := [exchange.error for exchange in exchanges if exchange.error]:
        raise SystemExit(f"a request failed: {failed[0]}")
    return exchanges


def measured(server: Server, one: Workload, many: Workload, run: int) -> Round:
    alone = checked(load(one.asks(run), loopback(server.port), LIMIT_S).exchanges)
    before = server.cpu_seconds() or 0.0
    streams = checked(load(many.asks(run), loopback(server.port), LIMIT_S).exchanges)
    cpu_s = (server.cpu_seconds() or 0.0) - before
    seconds = max(one.ended for one in streams) - min(one.sent for one in streams)
    return Round(median([one.events[0][0] - one.sent for one in alone]), many.output_tokens / seconds, cpu_s)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pool", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--asks", type=int, default=20)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    path, _ = resolve_model(options.model)
    common: dict[str, Any] = {"prompt_tokens": 16, "sampling": "greedy", "threads": 1, "partitioned": False}
    one = Workload(model=str(path), streams=1, requests=options.asks, tokens=2, **common)
    many = Workload(model=str(path), streams=options.streams, requests=1, tokens=options.tokens, **common)
    model = many.server_config(0)["model"]
    print(conditions())
    cores, client = cores_of(DEFAULT_PIN)
    with ExitStack() as stack:
        alone = stack.enter_context(serving(lambda port: {"server": {"port": port}, "model": model}, cores))
        behind = stack.enter_context(serving(lambda port: {"server": {"port": port}, "models": [model]}, cores))
        stack.enter_context(bound_to(client))
        for server in (alone, behind):
            measured(server, one, many, -1)
        pairs = []
        for i in range(options.pairs):
            order = (alone, behind) if i % 2 == 0 else (behind, alone)
            rounds = {server: measured(server, one, many, i) for server in order}
            pairs.append((rounds[alone], rounds[behind]))
        memory = alone.peak_bytes(), behind.peak_bytes()
    print_table([
        {
            "TTFT alone, ms": spread([1000 * a.ttft_s for a, _ in pairs], ".2f"),
            "behind - alone, ms": spread([1000 * (b.ttft_s - a.ttft_s) for a, b in pairs], ".2f"),
            "tokens/s alone": spread([a.tokens_per_s for a, _ in pairs], ".0f"),
            "behind / alone": spread([b.tokens_per_s / a.tokens_per_s for a, b in pairs], ".3f"),
            "CPU behind / alone": spread([b.cpu_s / a.cpu_s for a, b in pairs], ".2f"),
            "peak MB": " / ".join(f"{(n or 0) / 1e6:.0f}" for n in memory),
        }
    ])  # fmt: skip


if __name__ == "__main__":
    main()
