"""What is tried again, and what is told of a server that does not answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafast.batch import client as module
from llamafast.batch.client import TRIES, Client
from llamafast.batch.lines import Request
from llamafast.batch.run import Batch
from llamafast.errors import ConfigError

REQUEST = Request(1, "a", "/v1/completions", b'{"prompt": "x"}')


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    sleep = asyncio.sleep

    async def at_once(delay: float) -> None:
        seconds.append(delay)
        await sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", at_once)
    return seconds


@pytest.fixture
def nowhere() -> Iterator[str]:
    """Where nobody listens, nor will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


async def posted(*replies: bytes) -> tuple[module.Result, list[bytes]]:
    """What a server makes of the request that answers each try with one of ``replies``."""
    left, asked = list(replies), []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        await reader.readexactly(len(REQUEST.body))
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = Client(f"http://127.0.0.1:{port}/v1/", "secret")
        try:
            return await client.post(REQUEST), asked
        finally:
            await client.close()


def reply(status: int, body: bytes = b"{}", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-length: %d\r\nx-request-id: req_1\r\n%b\r\n%b" % (
        status, len(body), headers, body,
    )  # fmt: skip


async def test_who_is_told_to_come_back_does(slept: list[float]) -> None:
    result, asked = await posted(
        reply(429, headers=b"retry-after: 7\r\n"), reply(503), reply(529), reply(200, b'{"a": 1}')
    )
    assert (len(asked), slept) == (4, [7.0, 1.0, 2.0])
    assert result.response == module.Response(200, "req_1", {"a": 1})
    assert b"POST /v1/completions HTTP" in asked[0]
    assert b"authorization: Bearer secret" in asked[0].replace(b"Authorization", b"authorization")


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_other_answers_are_results(status: int) -> None:
    result, asked = await posted(reply(status, b"no JSON"))
    assert result.response == module.Response(status, "req_1", "no JSON")
    assert (result.failed, len(asked)) == (True, 1)


async def test_a_server_that_is_not_there(slept: list[float], nowhere: str) -> None:
    client = Client(nowhere)
    result = await client.post(REQUEST)
    await client.close()
    assert result.error is not None
    assert result.error.code == "connection_error"
    assert len(slept) == TRIES - 1
    assert max(slept) <= module.LONGEST_WAIT


async def test_a_connection_is_used_again_and_there_are_as_many_as_are_under_way() -> None:
    connections = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.current_task())
        while await reader.read(65536):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for _ in range(3):
            results = await asyncio.gather(*(client.post(REQUEST) for _ in range(5)))
            assert [result.failed for result in results] == [False] * 5
        await client.close()
        await asyncio.gather(*filter(None, connections))
    assert len(connections) == 5


@pytest.mark.parametrize("width", [None, 4])
async def test_where_nobody_listens_nothing_is_asked(tmp_path: Path, nowhere: str, width: int | None) -> None:
    given, output = tmp_path / "in", tmp_path / "out"
    given.write_text('{"custom_id": "a", "url": "/v1/completions", "body": {}}\n')
    client = Client(nowhere)
    with pytest.raises(ConfigError, match="no server answers"):
        await Batch(given, output).run(client, width)
    await client.close()
    assert output.read_bytes() == b""


@pytest.mark.parametrize("body", [b"<html>", b"[" * 100_000])
async def test_an_answer_that_nobody_can_read(body: bytes) -> None:
    result, _ = await posted(reply(200, body))
    assert result.response is not None
    assert result.response.body == body.decode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(200, body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert await client.get("/props") is None
        await client.close()
