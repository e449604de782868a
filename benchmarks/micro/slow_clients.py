"""Throughput of streams beside clients that hold connections and do as little as possible with them, in pairs.

    python -m benchmarks.micro.slow_clients [--model NAME] [--streams N] [--clients N] [--pairs N]

In turns with and without those clients, of every kind that benchmarks.slow_clients knows in equal numbers. They are
open before the streams begin, what they asked for is answered by then, and with the server's own limits all but a few
last to the end.
"""

from __future__ import annotations

import argparse
from itertools import cycle, islice
from time import sleep

from msgspec.structs import replace

from benchmarks.pinning import DEFAULT_PIN, bound_to, cores_of
from benchmarks.server import Server, serving
from benchmarks.slow_clients import KINDS, Crowd, readers
from benchmarks.workload import Workload, resolve_model
from llamafast.bench.address import loopback
from llamafast.bench.client import load
from llamafast.bench.figures import median, summarize

LIMIT_SECONDS = 60
READ_TOKENS = 100
# A server that works for less of the time has nothing to do.
LOOK_SECONDS = 0.5
BUSY_SECONDS = 0.05
SHARE_SECONDS = 3.0


def settle(server: Server) -> None:
    """Wait until ``server`` has done what it was asked for."""
    before, now = -BUSY_SECONDS, server.cpu_seconds() or 0.0
    while now - before >= BUSY_SECONDS:
        sleep(LOOK_SECONDS)
        before, now = now, server.cpu_seconds() or 0.0


def share(server: Server) -> float:
    """How much of a core ``server`` takes now."""
    before = server.cpu_seconds() or 0.0
    sleep(SHARE_SECONDS)
    return ((server.cpu_seconds() or 0.0) - before) / SHARE_SECONDS


def rate(port: int, work: Workload, run: int) -> float:
    """Generated tokens per second of ``work``."""
    done = summarize(load(work.asks(run), loopback(port), LIMIT_SECONDS), None)
    if done.failures:
        raise RuntimeError(done.failures[0])
    return done.tokens / done.wall_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="tiny-llama-chain", help="a tiny model's name, smollm2 or the path of a GGUF"
    )
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--requests", type=int, default=20, help="of a stream in a run")
    parser.add_argument("--clients", type=int, default=200, help="that are slow")
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    model, _ = resolve_model(options.model)
    kinds = list(islice(cycle([*KINDS.values(), *readers(READ_TOKENS).values()]), options.clients))
    work = Workload(
        model=str(model), streams=options.streams, requests=options.requests, prompt_tokens=32, tokens=128,
        sampling="greedy", threads=1, partitioned=False,
    )  # fmt: skip
    server_cores, client_cores = cores_of(DEFAULT_PIN)
    ratios: list[float] = []
    # room for the slow clients' answers beside the streams
    config = replace(work, streams=2 * work.streams).server_config
    with serving(config, server_cores) as server, bound_to(client_cores):
        rate(server.port, work, 0)
        for pair in range(1, options.pairs + 1):
            rates: dict[bool, float] = {}
            for k, beside in enumerate((False, True) if pair % 2 else (True, False)):
                with Crowd(server.port, kinds if beside else []) as crowd:
                    settle(server)
                    taken = share(server) if beside else 0.0
                    rates[beside] = rate(server.port, work, 2 * pair + k)
                    if beside:
                        print(f"{crowd.n_open} of {len(kinds)} last and take {100 * taken:.1f} % of a core", end="  ")
            ratios.append(rates[True] / rates[False])
            print(f"alone {rates[False]:.0f} tok/s  beside them {rates[True]:.0f}  ratio {ratios[-1]:.3f}", flush=True)
    print(f"median {median(ratios):.3f}  range {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
