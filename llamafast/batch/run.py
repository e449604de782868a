"""A batch from its file to the last result: as many requests at once as the engine computes, and some that wait."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from msgspec.json import encode
from tqdm import tqdm

from llamafast.batch.client import NOBODY, Client
from llamafast.batch.lines import BadLine, Request, Result, add_line, check_readable, failed, open_output, read_requests
from llamafast.errors import ConfigError

# For each that runs so many wait, so that no step is narrower than it could be.
_AHEAD = 2
_WIDTH = 32
_TOKENS = ("completion_tokens", "output_tokens", "total_tokens")


class Batch:
    """``given`` are OpenAI's lines, results are added to the file ``output`` as they come; what has one there is not
    asked again: ``n_left`` are left, and of those that are there ``n_failed``. Raises ConfigError for files that cannot
    be used."""

    def __init__(self, given: Path, output: Path) -> None:
        self._given = given
        check_readable(given)
        self._file, self._done = open_output(output, given)
        self.n_failed = self._done.n_failed
        self.n_left = sum(1 for _ in read_requests(given, self._done))

    async def run(self, client: Client, width: int | None = None) -> bool:
        """Whether every line of the output is a good answer. ``width`` requests are under way at once; None: twice as
        many as the server computes at once. Raises ConfigError where nobody answers before anything is asked, or a
        result cannot be written."""
        left = read_requests(self._given, self._done)
        with self._file, Bar(self.n_left) as bar:
            n_served = await _width(client)
            workers = [asyncio.create_task(self._work(client, left, bar)) for _ in range(width or n_served)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return not self.n_failed

    async def _work(self, client: Client, left: Iterator[Request | BadLine], bar: Bar) -> None:
        for one in left:
            result = failed(one) if isinstance(one, BadLine) else await client.post(one)
            self.n_failed += result.failed
            add_line(self._file, encode(result) + b"\n")
            bar.add(result, self.n_failed)


class Bar:
    """How far it is, how fast, and how long it will take."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, desc="batch", unit="req", disable=not sys.stderr.isatty())
        self._started = monotonic()
        self._n_tokens = 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, result: Result, n_failed: int) -> None:
        self._n_tokens += _n_tokens(result)
        rate = self._n_tokens / max(1e-3, monotonic() - self._started)
        self._bar.set_postfix_str(f"{rate:.0f} tok/s, {n_failed} failed", refresh=False)
        self._bar.update()


def _n_tokens(result: Result) -> int:
    """What was generated, or read where nothing is."""
    body = result.response and result.response.body
    usage = body.get("usage") if isinstance(body, dict) else None
    counts = (usage.get(name) for name in _TOKENS) if isinstance(usage, dict) else ()
    return next((n for n in counts if isinstance(n, int)), 0)


async def _width(client: Client) -> int:
    try:
        props = await client.get("/props")
    except NOBODY as error:
        raise ConfigError(f"no server answers: {type(error).__name__}: {error}") from error
    slots = props.get("total_slots") if isinstance(props, dict) else None
    return _AHEAD * slots if isinstance(slots, int) and slots > 0 else _WIDTH
