"""Clients that leave, flood, or send nonsense, against the real server over raw sockets."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.server import serving
from serve.conftest import model_config


def request_bytes(path: str, body: bytes, method: str = "POST") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def exchange(port: int, message: bytes) -> tuple[int, bytes]:
    """The status and body of one request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(message)
    raw = await asyncio.wait_for(reader.read(), 60)
    await abort(writer)
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


async def metrics(port: int) -> dict[str, float]:
    _, body = await exchange(port, request_bytes("/metrics", b"", "GET"))
    lines = re.findall(r"^([a-z_:]+) ([0-9.e+-]+)\r?$", body.decode(), re.MULTILINE)
    return {name: float(value) for name, value in lines}


async def until(port: int, there: int) -> dict[str, float]:
    """The metrics once so many sequences run or wait; fails when that does not come."""
    async with asyncio.timeout(30):
        while True:
            values = await metrics(port)
            if values["llamacpp:requests_processing"] + values["llamacpp:requests_deferred"] == there:
                return values
            await asyncio.sleep(0.02)


async def abort(writer: asyncio.StreamWriter) -> None:
    """Cut the connection, whatever is still to be said."""
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def leave_early(port: int, body: bytes, after_bytes: int) -> None:
    """Send a request and cut the connection after some of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes("/v1/completions", body))
    if after_bytes:
        await asyncio.wait_for(reader.read(after_bytes), 60)
    await abort(writer)


def completion(rng: random.Random) -> dict[str, object]:
    """A request of any shape."""
    prompt = [rng.randrange(33, 500) for _ in range(rng.choice([1, 5, 40, 200]))]
    return {
        "prompt": rng.choice([prompt, [prompt, prompt[:1]], "hello world", ["a", "b"]]),
        "max_tokens": rng.choice([1, 3, 20, 60]),
        "temperature": rng.choice([0, 1]),
        "stream": rng.random() < 0.5,
        "n": rng.choice([1, 1, 2]),
        "stop": rng.choice([None, "e", ["the", "qu"]]),
        "ignore_eos": True,
    }


@pytest.mark.heavy
async def test_a_thousand_mixed_requests_a_quarter_leaving(tiny_server):
    port, rng = tiny_server.port, random.Random(7)
    reference = request_bytes("/v1/completions", json.dumps({"prompt": "same", "temperature": 0}).encode())
    before = json.loads((await exchange(port, reference))[1])["choices"]
    limit = asyncio.Semaphore(48)

    async def one(body: bytes, leaves: bool, after: int) -> int | None:
        async with limit:
            if leaves:
                return await leave_early(port, body, after)
            return (await exchange(port, request_bytes("/v1/completions", body)))[0]

    statuses = await asyncio.gather(
        *(one(json.dumps(completion(rng)).encode(), rng.random() < 0.25, rng.choice([0, 1, 300])) for _ in range(1000))
    )
    assert {status for status in statuses if status is not None} == {200}
    values = await until(port, there=0)
    # the last one leaves the gauge of running sequences before it gives its id back
    async with asyncio.timeout(30):
        while values["batch_server:unused_sequences"] < 16:
            values = await metrics(port)
    assert values["batch_server:claimed_sequences"] == 0
    assert values["llamafast:kv_cells_used"] == 0
    assert json.loads((await exchange(port, reference))[1])["choices"] == before


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancel_takes_effect_while_others_stream(tiny_server, stream):
    """Running and queued requests alike: 40 requests on 16 sequence ids, all gone but one that streams on."""
    port = tiny_server.port
    body = {"prompt": "x", "max_tokens": 3000, "ignore_eos": True, "temperature": 1}
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_bytes("/v1/completions", json.dumps(body | {"stream": True}).encode()))
    await reader.read(100)
    others = []
    for _ in range(40):
        connection = await asyncio.open_connection("127.0.0.1", port)
        connection[1].write(request_bytes("/v1/completions", json.dumps(body | {"stream": stream}).encode()))
        others.append(connection[1])
    await until(port, there=41)
    for other in others:
        await abort(other)
    await until(port, there=1)
    assert await reader.read(100)
    await abort(writer)
    await until(port, there=0)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "x", "max_tokens": "5"}', 400),
        (b'{"prompt": {"a": 1}}', 400),
        (b'{"prompt": "x", "n": 100000}', 400),
        (b'{"prompt": "x", "temperature": NaN}', 400),
        (b'{"prompt": "x", "seed": 1e400}', 400),
        (b'{"prompt": [99999999999999999999999]}', 400),
        (b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
        (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 400),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b'{"prompt": "x", "stop": ["' + b"y" * 2000 + b'"]}', 400),
        (b" " * (2**25 + 1), 413),
    ],
    ids=range(16),
)
async def test_hostile_bodies(tiny_server, body, status):
    got, answer = await exchange(tiny_server.port, request_bytes("/v1/completions", body))
    assert got == status
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000


UNWANTED = {
    404: request_bytes("/nowhere", b" " * 3_000_000),
    405: request_bytes("/v1/completions", b" " * 3_000_000, "GET"),
    413: request_bytes("/v1/completions", b" " * 40_000_000),
    415: request_bytes("/v1/completions", b" " * 3_000_000).replace(b"application/json", b"text/plain"),
}


@pytest.mark.parametrize("status", UNWANTED)
async def test_an_answer_to_a_body_that_nobody_wants(tiny_server, status):
    got, answer = await exchange(tiny_server.port, UNWANTED[status])
    assert got == status
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


async def test_a_body_that_nobody_wants_is_not_waited_for(tiny_server):
    reader, writer = await asyncio.open_connection("127.0.0.1", tiny_server.port)
    writer.write(request_bytes("/nowhere", b"x" * 1000)[:-500])
    answer = await asyncio.wait_for(reader.read(), 30)
    await abort(writer)
    assert answer.startswith(b"HTTP/1.1 404")


BROKEN = [b"zz\r\nhi\r\n0\r\n\r\n", b"2\r\n{}\r\nzz\r\n", b"5\r\n{}", b"2\r\n{}\r\n", b"-1\r\n\r\n"]


@pytest.mark.parametrize("chunks", BROKEN, ids=range(len(BROKEN)))
async def test_broken_chunks(tiny_server, chunks):
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", tiny_server.port)
    writer.write(head + chunks)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 30)
    await abort(writer)
    assert answer.startswith(b"HTTP/1.1 400")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert "incomplete" in error["message"]


async def test_half_sent_requests_cost_nobody_anything(tiny_server):
    port = tiny_server.port
    writers = []
    for part in (b"POST /v1/comp", request_bytes("/v1/completions", b'{"prompt": "x"}')[:-5], b"\x16\x03\x01\x02\x00"):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(part)
        writers.append(writer)
    status, _ = await exchange(port, request_bytes("/v1/completions", b'{"prompt": "x"}'))
    assert status == 200
    for writer in writers:
        await abort(writer)
    await until(port, there=0)


@pytest.mark.heavy
async def test_memory_does_not_grow(tiny_server):
    """Resident memory after 10,000 short requests is within 5 % of that after 1,000."""
    port = tiny_server.port
    body = json.dumps({"prompt": [40], "max_tokens": 1, "stop": ["zz"], "stream": True}).encode()
    message = request_bytes("/v1/completions", body).replace(b"Connection: close\r\n", b"")

    async def requests(n: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(n):
            writer.write(message)
            answer = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 60)
            assert b"[DONE]" in answer
        await abort(writer)

    def resident() -> int:
        status = Path(f"/proc/{tiny_server.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    await asyncio.gather(*(requests(125) for _ in range(8)))
    before = resident()
    await asyncio.gather(*(requests(1125) for _ in range(8)))
    assert resident() < 1.05 * before


async def test_a_full_queue_says_so(tiny_model):
    path = tiny_model("tiny-llama")

    def config(port):
        settings = model_config(path, port, n_seq_max=1)
        settings["server"]["max_queue"] = 2
        return settings

    body = json.dumps({"prompt": "x", "max_tokens": 3000, "ignore_eos": True}).encode()
    with serving(config, None) as server:
        writers = []
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request_bytes("/v1/completions", body))
            writers.append(writer)
            await until(server.port, there=len(writers))
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_bytes("/v1/completions", body))
        answer = await reader.read()
        await abort(writer)
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 1" in answer.lower()
        for writer in writers:
            await abort(writer)
        await until(server.port, there=0)
        status, _ = await exchange(server.port, request_bytes("/v1/completions", b'{"prompt": "x"}'))
        assert status == 200


async def test_running_requests_finish_after_sigterm(tiny_model, tmp_path):
    path = tiny_model("tiny-llama")
    with serving(lambda port: model_config(path, port), None) as server:
        body = json.dumps({"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request_bytes("/v1/completions", body))
        await reader.read(100)
        os.kill(server.pid, signal.SIGTERM)
        answer = await asyncio.wait_for(reader.read(), 30)
        await abort(writer)
        assert answer.rstrip().endswith(b"0") or b"[DONE]" in answer


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model": {"path": "/nowhere.gguf"}}', "/nowhere.gguf"),
        ('{"model": {"pth": "x"}}', "model.pth: unknown key"),
        (
            json.dumps({"model": {"path": __file__}, "disk_cache": {"path": "/dev/null/x", "max_bytes": 1}}),
            "disk_cache.",
        ),
        ("{", "line 1"),
    ],
)
def test_a_config_that_cannot_be_served(tmp_path, config, message):
    file = tmp_path / "cfg.json"
    file.write_text(config)
    result = subprocess.run([sys.executable, "-m", "llamafast", "serve", str(file)], capture_output=True, text=True)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
