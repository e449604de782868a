"""``llamafast batch``: where the requests of a batch go, and what the process ends with."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from llamafast.batch.client import Client
from llamafast.batch.run import Batch
from llamafast.batch.served import Served, served
from llamafast.config import Config


def run_batch(
    config: Config | None, url: str | None, given: Path, output: Path, width: int | None, key: str = ""
) -> int:
    """Through an engine for ``config``, or the server at ``url``, with ``key``. 0 where every line of
    the output is a good answer, else 1, of which there is a line on stderr. Raises ConfigError or ModelLoadError."""
    # ends what it has started, as an interruption by the keyboard does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    batch = Batch(given, output)
    good = not batch.n_failed if not batch.n_left else _answered(batch, config, url, width, key)
    if batch.n_failed:
        print(f"llamafast: {output.absolute()}: {batch.n_failed} of its answers failed; each says why", file=sys.stderr)
    return int(not good)


def _answered(batch: Batch, config: Config | None, url: str | None, width: int | None, key: str) -> bool:
    if url is not None:
        return asyncio.run(_run(batch, Client(url, key), width))
    assert config is not None
    with served(config) as server:
        client = Client("http://localhost", uds=server.uds)
        return asyncio.run(_run(batch, client, width, server))


async def _run(batch: Batch, client: Client, width: int | None, server: Served | None = None) -> bool:
    """Raises ModelLoadError where ``server`` ends before the batch."""
    try:
        if server is None:
            return await batch.run(client, width)
        await server.ready(client)
        running, watching = asyncio.create_task(batch.run(client, width)), asyncio.create_task(server.watch())
        try:
            await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
            return running.result() if running.done() else watching.result()
        finally:
            for task in (running, watching):
                task.cancel()
            await asyncio.gather(running, watching, return_exceptions=True)
    finally:
        await client.close()
