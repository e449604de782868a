"""What watchers of the engine cost the streams beside them: the same server with and without them, in turns.

    python -m benchmarks.page [--model smollm2] [--pairs N] [--streams N] [--watchers N]

One server, whose GET /engine/events as many read as may while it answers. A pair is a round with them and one without,
one right after the other, the first of them by turns.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from typing import NamedTuple

from benchmarks.pinning import DEFAULT_PIN, bound_to, cores_of
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import Workload, resolve_model
from llamafast.bench.address import loopback
from llamafast.bench.client import load

LIMIT_S = 120.0
PATIENCE_S = 5.0
READ_BYTES = 1 << 16


class Round(NamedTuple):
    """``snapshots`` are those that all watchers got."""

    tokens_per_s: float
    cpu_s: float
    snapshots: int


def _opened(server: Server) -> tuple[HTTPConnection, HTTPResponse]:
    """A watcher; those of the round before may not have left yet."""
    until = time.monotonic() + PATIENCE_S
    while True:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=LIMIT_S)
        connection.request("GET", "/engine/events")
        response = connection.getresponse()
        if response.status == HTTPStatus.OK:
            return connection, response
        response.close()
        connection.close()
        if response.status != HTTPStatus.TOO_MANY_REQUESTS or time.monotonic() > until:
            raise SystemExit(f"a watcher was refused with {response.status}")
        time.sleep(0.02)


class Watchers:
    """Read events as they come, until their connections are closed; how many came is ``n_snapshots``."""

    def __init__(self, server: Server, n: int) -> None:
        self.n_snapshots = 0
        self._counting = threading.Lock()
        opened = [_opened(server) for _ in range(n)]
        self._connections = [connection for connection, _ in opened]
        self._responses = [response for _, response in opened]
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(i,), daemon=True) for i in range(n)]
        for thread in self._threads:
            thread.start()

    def _read(self, i: int) -> None:
        while not self._ended.is_set() and (piece := self._responses[i].read1(READ_BYTES)):
            with self._counting:
                self.n_snapshots += piece.count(b"data: ")

    def close(self) -> None:
        """They notice with their next event, a second later at most."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        for response, connection in zip(self._responses, self._connections, strict=True):
            # each of them has the socket
            response.close()
            connection.close()


@contextmanager
def watched(server: Server, n: int) -> Iterator[Watchers]:
    watchers = Watchers(server, n)
    try:
        yield watchers
    finally:
        watchers.close()


def measured(server: Server, many: Workload, run: int, n_watchers: int) -> Round:
    with watched(server, n_watchers) as watchers:
        before = server.cpu_seconds() or 0.0
        streams = load(many.asks(run), loopback(server.port), LIMIT_S).exchanges
        cpu_s = (server.cpu_seconds() or 0.0) - before
        n_snapshots = watchers.n_snapshots
    if failed := [exchange.error for exchange in streams if exchange.error]:
        raise SystemExit(f"a request failed: {failed[0]}")
    seconds = max(one.ended for one in streams) - min(one.sent for one in streams)
    return Round(many.output_tokens / seconds, cpu_s, n_snapshots)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--watchers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    path, _ = resolve_model(options.model)
    many = Workload(
        model=str(path), streams=options.streams, requests=1, tokens=options.tokens, prompt_tokens=16,
        sampling="greedy", threads=1, partitioned=False,
    )  # fmt: skip
    print(conditions())
    cores, client = cores_of(DEFAULT_PIN)
    with ExitStack() as stack:
        server = stack.enter_context(serving(many.server_config, cores))
        stack.enter_context(bound_to(client))
        measured(server, many, -1, 0)
        pairs = []
        for i in range(options.pairs):
            order = (0, options.watchers) if i % 2 == 0 else (options.watchers, 0)
            rounds = {n: measured(server, many, i, n) for n in order}
            pairs.append((rounds[0], rounds[options.watchers]))
    print_table([
        {
            "tokens/s": spread([a.tokens_per_s for a, _ in pairs], ".0f"),
            f"beside {options.watchers} watchers": spread([b.tokens_per_s for _, b in pairs], ".0f"),
            "ratio": spread([b.tokens_per_s / a.tokens_per_s for a, b in pairs], ".3f"),
            "CPU ratio": spread([b.cpu_s / a.cpu_s for a, b in pairs], ".3f"),
            "snapshots read": str(sum(b.snapshots for _, b in pairs)),
        }
    ])  # fmt: skip


if __name__ == "__main__":
    main()
