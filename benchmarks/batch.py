"""`llamafast batch` against as many clients of the same server: the same requests, in turns.

    python -m benchmarks.batch [--model tiny-llama-chain] [--pairs N] [--requests N] [--streams N] [--tokens N]

A server with a place for each stream is up all the time. A pair is the requests sent by so many clients that stream,
one after another each, and a batch of as many with `--url`, one right after the other, the first of them by turns.
Tokens per second are from the first request that is sent to the last answer, which a batch has as a line of its output.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from msgspec.json import encode
from msgspec.structs import replace

from benchmarks.pinning import DEFAULT_PIN, bound_to, cores_of
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import Workload, resolve_model
from llamafast.batch.client import Client
from llamafast.batch.run import Batch
from llamafast.bench.address import loopback
from llamafast.bench.client import load

LIMIT_S = 300.0


def streamed(server: Server, work: Workload, run: int) -> float:
    """Tokens per second of clients that stream."""
    exchanges = load(work.asks(run), loopback(server.port), LIMIT_S).exchanges
    if failed := [exchange.error for exchange in exchanges if exchange.error]:
        raise SystemExit(f"a request failed: {failed[0]}")
    return work.output_tokens / (max(one.ended for one in exchanges) - min(one.sent for one in exchanges))


def batched(server: Server, work: Workload, run: int, folder: Path) -> float:
    """Tokens per second of a batch."""
    given, output = folder / "in", folder / f"out{run}"
    asks = [ask for script in work.asks(run) for ask in script]
    lines = ({"custom_id": str(i), "url": ask.path, "body": ask.body} for i, ask in enumerate(asks))
    given.write_bytes(b"".join(encode(line) + b"\n" for line in lines))
    batch = Batch(given, output)
    seconds = asyncio.run(_run(batch, f"http://127.0.0.1:{server.port}"))
    if batch.n_failed or output.read_bytes().count(b"\n") != len(asks):
        raise SystemExit(f"{batch.n_failed} requests of the batch failed")
    return work.output_tokens / seconds


async def _run(batch: Batch, url: str) -> float:
    client = Client(url)
    try:
        start = perf_counter()
        await batch.run(client)
        return perf_counter() - start
    finally:
        await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="tiny-llama-chain")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    path, _ = resolve_model(options.model)
    work = Workload(
        model=str(path),
        streams=options.streams,
        requests=-(-options.requests // options.streams),
        prompt_tokens=32,
        tokens=options.tokens,
        sampling="greedy",
        threads=1,
        partitioned=False,
    )
    print(conditions())
    cores, others = cores_of(DEFAULT_PIN)
    pairs: list[tuple[float, float]] = []
    with serving(work.server_config, cores) as server, bound_to(others), TemporaryDirectory() as name:
        folder, few = Path(name), replace(work, requests=1)
        streamed(server, few, -1)
        batched(server, few, -2, folder)
        for i in range(options.pairs):
            if i % 2 == 0:
                clients = streamed(server, work, 2 * i)
                batch = batched(server, work, 2 * i + 1, folder)
            else:
                batch = batched(server, work, 2 * i + 1, folder)
                clients = streamed(server, work, 2 * i)
            pairs.append((clients, batch))
    print_table([
        {
            "requests": str(work.streams * work.requests),
            "tokens/s of clients": spread([clients for clients, _ in pairs], ".0f"),
            "tokens/s of the batch": spread([batch for _, batch in pairs], ".0f"),
            "batch / clients": spread([batch / clients for clients, batch in pairs], ".3f"),
        }
    ])  # fmt: skip


if __name__ == "__main__":
    main()
