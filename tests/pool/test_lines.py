"""A WebSocket in front of models whose processes are fakes behind real sockets: whose answer is whose when they end."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from support.fake_child import FakeChild, Pool
from websockets.asyncio.server import Server, ServerConnection, unix_serve

from llamafast.api.body_size import BodyLimits
from llamafast.api.http import Identity, Record
from llamafast.api.request_log import RequestLog
from llamafast.config import ServerConfig
from llamafast.engine.types import Tenant
from llamafast.pool.catalogue import Catalogue
from llamafast.pool.children import Door
from llamafast.pool.sockets import PooledSession
from llamafast.pool.tenants import HEADER, ToldKeys

SECONDS = 30.0


class Client:
    """The client's end of its socket: ``reads`` is cleared while it does not read."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.reads.set()
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.got: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.tenant = Tenant("alice")

    async def receive(self) -> bytes:
        return await self.frames.get()

    async def send(self, data: bytes) -> None:
        await self.reads.wait()
        self.got.put_nowait(json.loads(data))

    def record(self) -> Record:
        return Record("GET", Identity(b"request", b""))

    def create(self, lane: str) -> None:
        self.frames.put_nowait(json.dumps({"type": "response.create", "model": "a", "stream_id": lane}).encode())

    async def event(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.got.get(), SECONDS)


class Behind:
    """The model's processes, each a server on a socket of its own: ``asked`` is what came, with its connection."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.asked: asyncio.Queue[tuple[ServerConnection, dict[str, Any]]] = asyncio.Queue()
        self.servers: list[Server] = []
        self._folder = folder
        self._stack = stack

    async def serve(self, child: FakeChild) -> None:
        path = self._folder / str(len(self.servers))
        self.servers.append(await self._stack.enter_async_context(unix_serve(self._listen, str(path))))
        child.door = Door(path, "secret", child.door.http)

    async def _listen(self, connection: ServerConnection) -> None:
        async for message in connection:
            self.asked.put_nowait((connection, json.loads(message)))

    async def next(self) -> tuple[ServerConnection, str]:
        connection, frame = await asyncio.wait_for(self.asked.get(), SECONDS)
        return connection, frame["stream_id"]


async def say(connection: ServerConnection, kind: str, lane: str) -> None:
    await connection.send(f'{{"type":"response.{kind}","stream_id":"{lane}"}}')


@pytest.fixture
async def line(folder: Path) -> AsyncIterator[tuple[Client, Behind, Pool]]:
    async with AsyncExitStack() as stack:
        client, behind, pool = Client(), Behind(folder, stack), Pool({"a": 1}, 10)
        load = FakeChild.load

        async def served(child: FakeChild) -> None:
            await behind.serve(child)
            await load(child)

        pool.prepare["a"] = lambda child: setattr(child, "load", lambda: served(child))
        config = ServerConfig()
        session = PooledSession(
            client,  # type: ignore[arg-type]
            lambda: client.tenant,
            pool.fleet,
            Catalogue(pool.fleet.members.values()),
            RequestLog(config),
            limits=BodyLimits(2**20, 2**23),
            config=config,
        )
        reading = asyncio.create_task(session.read())
        try:
            yield client, behind, pool
        finally:
            reading.cancel()
            await session.cancel()
            await pool.close()


Line = tuple[Client, Behind, Pool]


async def test_who_reads_slowly_is_told_of_the_end_of_a_model_that_is_back_already(line: Line) -> None:
    client, behind, pool = line
    client.create("cut")
    connection, _ = await behind.next()
    client.reads.clear()
    await say(connection, "delta", "cut")
    await asyncio.sleep(0.05)
    behind.servers[0].close()
    pool.children["a"][0].die(-9)
    await pool.settle(seconds=2)
    client.create("whole")
    await pool.settle(seconds=2)
    connection, _ = await behind.next()
    await say(connection, "completed", "whole")
    await asyncio.sleep(0.05)
    client.reads.set()
    events = [await client.event() for _ in range(3)]
    assert {(event["type"], event.get("stream_id")) for event in events} == {
        ("response.delta", "cut"), ("error", "cut"), ("response.completed", "whole"),
    }  # fmt: skip
    assert pool["a"].busy == 0


async def test_out_of_descriptors_is_no_death(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    client, behind, _ = line

    async def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("llamafast.pool.sockets.unix_connect", refuse)
        client.create("1")
        event = await client.event()
    assert (event["status"], event["error"]["code"], event["stream_id"]) == (503, "engine_unavailable", "1")
    client.create("2")
    assert (await behind.next())[1] == "2"


async def test_each_frame_is_of_whom_its_key_is_now(line: Line) -> None:
    """And a connection that says so is opened once the last one owes nothing any more."""
    client, behind, pool = line
    client.create("1")
    first, _ = await behind.next()
    client.create("2")
    assert await behind.next() == (first, "2")
    client.tenant = Tenant("alice", priority=5)
    client.create("3")
    client.create("4")
    await say(first, "completed", "1")
    assert (await client.event())["stream_id"] == "1"
    assert behind.asked.empty()
    await say(first, "completed", "2")
    second, lane = await behind.next()
    assert lane == "3"
    assert await behind.next() == (second, "4")
    keys = ToldKeys("secret")
    tenants = []
    for connection in (first, second):
        assert connection.request is not None
        key = keys.authenticate({HEADER: connection.request.headers[HEADER.decode()].encode()})
        tenants.append(keys.tenant(key))
    assert [tenant.priority for tenant in tenants] == [0, 5]
    await asyncio.wait_for(first.wait_closed(), SECONDS)
    for lane in ("3", "4"):
        await say(second, "completed", lane)
    assert [(await client.event())["stream_id"] for _ in range(3)] == ["2", "3", "4"]
    assert pool["a"].busy == 0
