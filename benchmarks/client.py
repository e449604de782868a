"""A closed-loop load client: one connection per stream, the next request when the last answer has ended.

While the load runs, an event costs a time stamp and an append. What the events say is read afterwards.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import cast

import msgspec
import uvloop

from benchmarks.event_stream import BadAnswer, EventStream
from benchmarks.workload import SAMPLING_FIELDS, Workload


@dataclass(eq=False)
class Exchange:
    """One request on the wire: when it was sent, what arrived when, and how it broke."""

    sent: float
    events: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0
    error: str | None = None


class Connection(asyncio.Protocol):
    """A keep-alive connection that carries one exchange at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self.transport = cast(asyncio.Transport, transport)
        self.done: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if self.done is None or self.done.done():
            self.transport.abort()
            return
        try:
            for event in self.answer.feed(data):
                self.exchange.events.append((now, event))
        except BadAnswer as error:
            self.end(now, str(error))
        else:
            if self.answer.finished:
                self.end(now, None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(perf_counter(), f"connection lost: {exc or 'closed by the server'}")

    def end(self, now: float, error: str | None) -> None:
        """Ends the exchange unless it has ended already."""
        if self.done is not None and not self.done.done():
            self.exchange.ended, self.exchange.error = now, error
            self.done.set_result(None)

    async def send(self, message: bytes, limit_s: float) -> Exchange:
        """The whole exchange; an answer that takes longer than ``limit_s`` is an error."""
        self.done = asyncio.get_running_loop().create_future()
        self.answer = EventStream()
        self.exchange = Exchange(sent=perf_counter())
        if self.transport.is_closing():
            self.end(perf_counter(), "connection lost: closed by the server")
        self.transport.write(message)
        await asyncio.wait([self.done], timeout=limit_s)
        self.end(perf_counter(), f"no complete answer after {limit_s:g} s")
        if self.exchange.error is not None:
            self.transport.abort()
        return self.exchange


def completion_message(work: Workload, prompt: Sequence[int]) -> bytes:
    """A streaming /v1/completions request as bytes."""
    body = msgspec.json.encode(
        {
            "model": "benchmark",
            "prompt": prompt,
            "max_tokens": work.tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **SAMPLING_FIELDS[work.sampling],
        }
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connect(port: int) -> Connection:
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(Connection, "127.0.0.1", port))[1]


async def play(port: int, connection: Connection, messages: Sequence[bytes], limit_s: float) -> list[Exchange]:
    """One stream's requests in turn, on a new connection after a failure."""
    exchanges = []
    for message in messages:
        if connection.transport.is_closing():
            try:
                connection = await connect(port)
            except OSError as error:
                now = perf_counter()
                exchanges.append(Exchange(sent=now, ended=now, error=f"cannot connect: {error}"))
                continue
        exchanges.append(await connection.send(message, limit_s))
    connection.transport.abort()
    return exchanges


async def play_all(port: int, scripts: Sequence[Sequence[bytes]], limit_s: float) -> list[Exchange]:
    """Every stream at once, connected beforehand."""
    connections = [await connect(port) for _ in scripts]
    plays = (play(port, *stream, limit_s) for stream in zip(connections, scripts, strict=True))
    return [exchange for exchanges in await asyncio.gather(*plays) for exchange in exchanges]


@dataclass(frozen=True, eq=False)
class Load:
    """All exchanges of one run, and the CPU seconds the client spent on them."""

    exchanges: list[Exchange]
    client_cpu_s: float


def load(work: Workload, port: int, run: int, limit_s: float) -> Load:
    """Put ``work`` on the server at loopback ``port``; ``run`` picks the prompts."""
    scripts = [
        [completion_message(work, work.prompt(run, stream, request)) for request in range(work.requests)]
        for stream in range(work.streams)
    ]
    gc.collect()
    gc.disable()
    try:
        cpu = process_time()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exchanges = runner.run(play_all(port, scripts, limit_s))
        return Load(exchanges, process_time() - cpu)
    finally:
        gc.enable()
