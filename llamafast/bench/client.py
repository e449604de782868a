"""A load client: closed loops and open ones.

In a closed loop every stream has a connection and sends the next request when the last answer has ended; in an open one
every request is sent at its own time, on a connection of its own.

While the load runs, an event costs a time stamp and an append. What the events say is read afterwards.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Sequence
from time import perf_counter, process_time
from typing import cast

import uvloop

from llamafast.bench.address import Address
from llamafast.bench.ask import Ask
from llamafast.bench.event_stream import BadAnswer, EventStream, WholeBody
from llamafast.bench.figures import Exchange, Load, spoken

# Of every stream its requests; several streams may take theirs from one iterator.
Scripts = Sequence[Iterable[Ask]]


class Connection(asyncio.Protocol):
    """A keep-alive connection to ``to`` that carries one exchange at a time."""

    def __init__(self, to: Address) -> None:
        self._to = to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self.transport = cast(asyncio.Transport, transport)
        self.done: asyncio.Future[None] | None = None
        self.n_carried = 0

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if self.done is None or self.done.done():
            self.transport.abort()
            return
        ask, events = self.exchange.ask, self.exchange.events
        try:
            for event in self.answer.feed(data):
                events.append((now, event))
        except BadAnswer as error:
            self.end(now, str(error))
            return
        if self.answer.finished:
            self.end(now, None)
        elif ask.leave_after is not None and len(events) >= ask.leave_after:
            self.exchange.left = True
            self.end(now, None)
            self.transport.abort()
        elif ask.pause_s:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(ask.pause_s, self.read_on)

    def read_on(self) -> None:
        """The end of a slow reader's pause."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.n_carried > 1 and not self.answer.begun:
            self.exchange.stale = True
        self.end(perf_counter(), f"connection lost: {exc or 'closed by the server'}")

    def end(self, now: float, error: str | None) -> None:
        """Ends the exchange unless it has ended already."""
        if self.done is not None and not self.done.done():
            self.exchange.ended, self.exchange.error = now, error
            self.done.set_result(None)

    async def send(self, ask: Ask, limit_s: float, history: str = "") -> Exchange:
        """The whole exchange; an answer that takes longer than ``limit_s`` is an error."""
        message = ask.message(self._to, history)
        self.done = asyncio.get_running_loop().create_future()
        self.answer = EventStream() if ask.streams else WholeBody()
        self.exchange = Exchange(ask, sent=perf_counter())
        self.n_carried += 1
        if self.transport.is_closing():
            self.end(perf_counter(), "connection lost: closed by the server")
        self.transport.write(message)
        await asyncio.wait([self.done], timeout=limit_s)
        self.end(perf_counter(), f"no complete answer after {limit_s:g} s")
        if self.exchange.error is not None:
            self.transport.abort()
        return self.exchange


async def connect(to: Address) -> Connection:
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(lambda: Connection(to), to.url.host, to.url.port, ssl=to.tls))[1]


async def play(to: Address, connection: Connection | None, script: Iterable[Ask], limit_s: float) -> list[Exchange]:
    """One stream's requests in turn, on a new connection after a failure and where there is none."""
    exchanges: list[Exchange] = []
    history = ""
    for ask in script:
        try:
            if connection is None or connection.transport.is_closing():
                connection = await connect(to)
            exchange = await connection.send(ask, limit_s, history)
            if exchange.stale:
                # a server may close an idle connection at any time: clients send again on a new one
                connection = await connect(to)
                exchange = await connection.send(ask, limit_s, history)
        except OSError as error:
            exchange = unconnected(ask, error)
        exchanges.append(exchange)
        if ask.follows:
            history += ask.body["prompt"] + spoken(exchange)
    if connection is not None:
        connection.transport.abort()
    return exchanges


async def play_at(to: Address, ask: Ask, start: float, limit_s: float) -> Exchange:
    """One request of an open loop; its connection is made before its time."""
    try:
        await asyncio.sleep(start + ask.at - 0.05 - perf_counter())
        connection = await connect(to)
        await asyncio.sleep(start + ask.at - perf_counter())
    except OSError as error:
        return unconnected(ask, error)
    try:
        return await connection.send(ask, limit_s)
    finally:
        connection.transport.abort()


def unconnected(ask: Ask, error: OSError) -> Exchange:
    now = perf_counter()
    return Exchange(ask, sent=now, ended=now, error=f"cannot connect: {error}")


async def play_all(to: Address, scripts: Scripts, limit_s: float, *, timed: bool = False) -> list[Exchange]:
    """Every script at once, connected beforehand; ``timed`` sends every request at its own time instead."""
    if timed:
        start = perf_counter() + 0.1
        return await asyncio.gather(*(play_at(to, ask, start, limit_s) for script in scripts for ask in script))
    connections: list[Connection | None] = []
    for _ in scripts:
        try:
            connections.append(await connect(to))
        except OSError:
            # a server that is gone: each of its requests says so
            connections.append(None)
    plays = (play(to, *stream, limit_s) for stream in zip(connections, scripts, strict=True))
    return [exchange for exchanges in await asyncio.gather(*plays) for exchange in exchanges]


def load(scripts: Scripts, to: Address, limit_s: float, *, timed: bool = False) -> Load:
    """Put ``scripts`` on the server."""
    gc.collect()
    gc.disable()
    try:
        cpu = process_time()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exchanges = runner.run(play_all(to, scripts, limit_s, timed=timed))
        return Load(exchanges, process_time() - cpu)
    finally:
        gc.enable()
