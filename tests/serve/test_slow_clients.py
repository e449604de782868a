"""Clients that hold a connection and do as little as possible with it, beside streams that are read."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from support.server_process import Process

from benchmarks.server import Server, healthy, serving
from benchmarks.slow_clients import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    HTTP2,
    KINDS,
    SETTINGS,
    TOKENIZE_LESS,
    Crowd,
    Kind,
    SlowClient,
    ask,
    frame,
    head,
    readers,
)
from serve.conftest import model_config
from serve.test_robustness import abort, metrics, request_bytes, until

LIMITS = {"header": 1.0, "keep_alive": 1.5, "body": 1.0, "send": 1.0, "websocket_idle": 1.0}
# A limit is noticed up to a quarter of it late; what else a busy machine has to do takes so long at most.
LATE = 1.25
SLACK_SECONDS = 15.0
STREAM = {
    "prompt": "x", "max_tokens": 200, "ignore_eos": True, "temperature": 1, "stream": True,
    "stream_options": {"include_usage": True},
}  # fmt: skip


async def read_streams(port: int, over: asyncio.Event) -> int:
    """Stream answers one after another on one connection, until told; how many there were."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    message = request_bytes("/v1/completions", json.dumps(STREAM).encode()).replace(b"Connection: close\r\n", b"")
    n_whole = 0
    while not over.is_set():
        writer.write(message)
        answer = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 30)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"completion_tokens":200,' in answer
        assert b"data: [DONE]" in answer
        n_whole += 1
    await abort(writer)
    return n_whole


def n_descriptors(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


@pytest.mark.heavy
async def test_every_kind_is_gone_within_its_limit_and_holds_nothing(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    config = model_config(tiny_model("tiny-llama"), 0, n_ctx=16384)
    config["server"] = {"port": 0} | {f"{name}_seconds": seconds for name, seconds in LIMITS.items()}
    kinds = [*KINDS.items(), *readers(max_tokens=3000).items()] * 2
    with Process(tmp_path, config) as process:
        process.until_serving()
        while not healthy(process.port, "/healthz"):
            await asyncio.sleep(0.02)
        before = n_descriptors(process)
        over = asyncio.Event()
        streams = [asyncio.create_task(read_streams(process.port, over)) for _ in range(4)]
        with Crowd(process.port, [kind for _, kind in kinds]) as crowd:
            until_gone = time.monotonic() + 30
            while crowd.n_open and time.monotonic() < until_gone:
                await asyncio.sleep(0.05)
        over.set()
        assert min(await asyncio.gather(*streams)) > 0
        await until(process.port, there=0)
        assert (await metrics(process.port))["llamafast:kv_cells_used"] == 0
        async with asyncio.timeout(SLACK_SECONDS):
            while n_descriptors(process) > before:
                await asyncio.sleep(0.05)
        log = process.log
        process.kill()
    for (name, kind), client in zip(kinds, crowd.clients, strict=True):
        limit = sum(LIMITS[end] for end in kind.ends)
        assert client.lasted is not None, name
        assert limit - 0.05 < client.lasted < limit * LATE + SLACK_SECONDS, (name, client.lasted)
    n_bodies, n_readers = (sum(kind.ends[0] == end for _, kind in kinds) for end in ("body", "send"))
    assert log.count(" status=499 ") == n_readers
    assert log.count(" status=408 ") == n_bodies - 2  # the two that nobody wants are not found
    assert "Traceback" not in log


def connect(port: int, message: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(message)
    return connection


def read(connection: socket.socket) -> bytes:
    """All that comes until the server closes it; a part of what was sent may be unread by then."""
    told = b""
    with connection, suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            told += piece
    return told


@pytest.mark.parametrize(("n_bytes", "status"), [(60_000, b"200"), (70_000, b"431")])
def test_a_head_has_a_limit(tiny_server: Server, n_bytes: int, status: bytes) -> None:
    message = head("GET /v1/models", f"x: {'x' * n_bytes}", "connection: close")
    assert read(connect(tiny_server.port, message)).split()[1] == status


def test_an_http2_connection_is_told_its_limits(tiny_server: Server) -> None:
    with connect(tiny_server.port, HTTP2) as connection:
        kind, length = SETTINGS, int.from_bytes(connection.recv(3))
        told = connection.recv(6 + length, socket.MSG_WAITALL)
    assert told[0] == kind
    settings = dict(struct.iter_unpack(">HI", told[6:]))
    max_concurrent_streams, max_header_list_size = 3, 6
    assert settings[max_concurrent_streams] == 128
    assert settings[max_header_list_size] == 65536


def test_a_client_that_resets_one_request_after_another_is_cut_off(tiny_server: Server) -> None:
    reset = 3
    cancel, enhance_your_calm = 8, 11
    requests = b"".join(
        frame(HEADERS, END_HEADERS | END_STREAM, stream, ask(b"GET", b"/v1/models"))
        + frame(reset, 0, stream, struct.pack(">I", cancel))
        for stream in range(1, 201, 2)
    )
    told = read(connect(tiny_server.port, HTTP2 + requests))
    goaway = 7
    *_, last = frames(told)
    assert last[0] == goaway
    assert struct.unpack(">I", last[1][4:8]) == (enhance_your_calm,)


def frames(told: bytes) -> list[tuple[int, bytes]]:
    """The kinds and payloads of HTTP/2 frames."""
    found = []
    while told:
        length = int.from_bytes(told[:3])
        found.append((told[3], told[9 : 9 + length]))
        told = told[9 + length :]
    return found


@pytest.mark.heavy
def test_an_answer_is_there_for_a_client_that_pauses_beyond_the_idle_time(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    config = model_config(tiny_model("tiny-llama"), 0)
    config["server"] = {"port": 0, "keep_alive_seconds": 0.5}
    with Process(tmp_path, config) as process:
        process.until_serving()
        # as a slow client, with a small buffer: most of the answer stays with the server
        connection = SlowClient(process.port, Kind((), TOKENIZE_LESS)).socket
        connection.settimeout(20)
        time.sleep(1.5)
        told = read(connection)
        process.kill()
    answer_head, _, body = told.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in answer_head + b"\r\n"
    assert len(body) > 500_000


def test_connections_beyond_the_limit_wait(tiny_model: Callable[[str], Path]) -> None:
    def config(port: int) -> dict[str, object]:
        settings = model_config(tiny_model("tiny-llama"), port)
        settings["server"] |= {"max_connections": 2}
        return settings

    with serving(config, None) as server:
        first, second, third = (connect(server.port, head("GET /v1/models")) for _ in range(3))
        assert first.recv(1)
        assert second.recv(1)
        third.settimeout(0.3)
        with pytest.raises(TimeoutError):
            third.recv(1)
        first.close()
        third.settimeout(20)
        assert third.recv(1)
        second.close()
        third.close()
