"""What a pool is made of, part by part: bodies that are peeked into, its folder, its streams, what it measures."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_child import Pool

from llamafast.api.keys import Keys
from llamafast.config import ServerConfig
from llamafast.engine.types import ANYBODY, Tenant
from llamafast.errors import ConfigError, InvalidKey, InvalidRequest, PermissionDenied
from llamafast.granian_limits import RESERVED_DESCRIPTORS, limits
from llamafast.pool.asked import Asked, asked_in, seconds
from llamafast.pool.children import Door, client
from llamafast.pool.folder import PrivateFolder
from llamafast.pool.resident import peak_bytes
from llamafast.pool.tenants import HEADER, ToldKeys, told


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5m", 300), ("1h30m", 5400), ("90s", 90), ("0s", 0), ("-1m", -60), ("1.5h", 5400), ("300ms", 0.3)],
)
def test_ollamas_durations(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5x", "5m!", "--5m", "5m5"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidRequest, match="keep_alive"):
        seconds(text)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", Asked()),
        (b'{"model": "a", "stream": true, "x": [1, {"model": "b"}]}', Asked("a", True)),
        (b'{"model": null, "ttl": 5, "keep_alive": "1m"}', Asked(None, None, "1m", 5)),
        (b"[1, 2]", Asked()),
        (b'"text"', Asked()),
    ],
)
def test_what_a_body_asks_for(body: bytes, expected: Asked) -> None:
    assert asked_in(body) == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [(b"", None), (b"{", None), (b'{"model": 1}', "model"), (b'{"ttl": "x"}', "ttl")],
)
def test_what_a_body_may_not_ask_for(body: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked_in(body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (Asked(keep_alive="1m"), 60),
        (Asked(ttl=60), 60),
        (Asked(ttl=60, keep_alive="1m"), 60),
        (Asked(ttl=-2, keep_alive="-1m"), -2),
        (Asked(), None),
        (Asked(ttl=60, keep_alive="2m"), InvalidRequest),
        (Asked(ttl=0, keep_alive=-1), InvalidRequest),
    ],
)
def test_how_long_a_model_stays(body: Asked, expected: float | type[InvalidRequest] | None) -> None:
    if expected is InvalidRequest:
        with pytest.raises(InvalidRequest, match="`ttl` says something else than `keep_alive`"):
            _ = body.ttl_seconds
    else:
        assert body.ttl_seconds == expected


@given(st.binary(max_size=64))
def test_any_bytes_are_asked_or_refused(body: bytes) -> None:
    with suppress(InvalidRequest):
        assert isinstance(asked_in(body), Asked)


@pytest.mark.parametrize("tenant", [ANYBODY, Tenant("alice", "alice", -5, 3), Tenant(name="b", salt="", max_running=1)])
@pytest.mark.parametrize("admin", [False, True])
def test_whose_a_request_is_arrives_as_it_was_told(tenant: Tenant, admin: bool) -> None:
    keys = ToldKeys("s3cret")
    key = keys.authenticate({HEADER: told(tenant, admin, "s3cret", "192.0.2.7")})
    assert keys.tenant(key) == tenant
    assert key is not None
    assert key.peer == "192.0.2.7"
    if admin:
        keys.require_admin(key)
    else:
        with pytest.raises(PermissionDenied):
            keys.require_admin(key)
    for header in (told(tenant, admin, "other"), b"", b"s3cre", told(tenant, admin, "")):
        with pytest.raises(InvalidKey):
            keys.authenticate({HEADER: header})
    assert Keys().authenticate({HEADER: told(tenant, admin, "s3cret")}) is None


def test_a_folder_is_private_and_those_of_the_dead_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine, other = PrivateFolder(), PrivateFolder()
    assert mine.path.stat().st_mode & 0o777 == 0o700
    assert mine.socket() != mine.socket()
    code = "import os; from llamafast.pool.folder import PrivateFolder; f = PrivateFolder(); print(f.path); os._exit(1)"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    dead = Path(run.stdout.strip())
    assert dead.is_dir()
    (tmp_path / "llamafast-pool-of-somebody-elses").mkdir()
    third = PrivateFolder()
    assert not dead.exists()
    assert {one.name for one in tmp_path.iterdir()} == {
        mine.path.name, other.path.name, third.path.name, "llamafast-pool-of-somebody-elses",
    }  # fmt: skip
    for one in (mine, other, third):
        one.close()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = PrivateFolder()
    with pytest.raises(ConfigError, match="TMPDIR"):
        folder.socket()
    assert list(deep.iterdir()) == []


def test_a_connection_of_a_client_takes_one_to_a_model_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafast.granian_limits.raise_descriptor_limit", lambda wanted: min(wanted, 1000))
    server = ServerConfig()
    assert limits(server)["backpressure"] == 1000 - RESERVED_DESCRIPTORS
    assert limits(server, 2)["backpressure"] == (1000 - RESERVED_DESCRIPTORS) // 2
    monkeypatch.setattr("llamafast.granian_limits.raise_descriptor_limit", lambda wanted: wanted)
    assert limits(server, 2)["backpressure"] == server.max_connections


def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    eats = "b = bytearray(b'x' * {0}); print('.', flush=True); "
    below = f"import sys; {eats.format(40_000_000)} sys.stdin.read()"
    code = (
        f"import subprocess, sys; {eats.format(60_000_000)}"
        f"p = subprocess.Popen([sys.executable, '-c', {below!r}], stdin=subprocess.PIPE); sys.stdin.read(); p.kill()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(4)
        assert 100_000_000 < (peak_bytes(process.pid) or 0) < 300_000_000
        process.communicate()
    assert peak_bytes(process.pid) is None


class Echo:
    """A server on a Unix socket that answers with how many bytes it got, and is slow to read."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await asyncio.sleep(self.pause)
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2 * length) + body + body)
        await writer.drain()
        writer.close()


@pytest.mark.parametrize("n_bytes", [0, 1, 300_000, 8_000_000])
async def test_bodies_of_any_size_pass_through_a_socket(folder: Path, n_bytes: int) -> None:
    server = await asyncio.start_unix_server(Echo(0.02), folder / "s", limit=2**20)
    body = os.urandom(n_bytes)
    async with server, client(folder / "s") as http:
        headers = [(b"host", b"x"), (b"content-length", b"%d" % n_bytes)]
        async with http.stream("POST", "http://x/", headers=headers, content=body) as response:
            got = b""
            async for piece in response.aiter_stream():
                got += piece
                await asyncio.sleep(0)
        assert got == body + body


async def test_what_a_process_has_said_is_read_to_its_end_after_it_has_ended(folder: Path) -> None:
    n_bytes = 150_000  # which the kernel and a stream keep for who reads slowly
    answering: list[asyncio.Future[Any]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(cast(asyncio.Task[None], asyncio.current_task()))
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % n_bytes + bytes(n_bytes))
                await writer.drain()
        writer.close()

    pool = Pool({"a": 1}, 10)
    async with await asyncio.start_unix_server(answer, folder / "s"), client(folder / "s") as http:
        pool.prepare["a"] = lambda child: setattr(child, "door", Door(folder / "s", "secret", http))
        door = await (await pool.ask("a"))
        async with (
            door.http.stream("GET", "http://x/", headers=[(b"host", b"x")]) as first,
            door.http.stream("GET", "http://x/", headers=[(b"host", b"x")]) as second,
        ):
            await first.aread()
            pieces = second.aiter_stream()
            got = len(await anext(pieces))
            await first.aclose()
            assert len(http.connections) == 2
            pool.children["a"][0].die(0)
            await pool.settle()
            assert [one.is_closed() for one in http.connections] == [True, False]
            async for piece in pieces:
                got += len(piece)
                await asyncio.sleep(0)
            assert got == n_bytes
    await asyncio.gather(*answering)
    await pool.close()


async def test_a_socket_that_nobody_listens_on(folder: Path) -> None:
    async with client(folder / "none") as http:
        with pytest.raises(httpcore2.ConnectError):
            await http.request("GET", "http://x/", headers=[(b"host", b"x")])


async def test_a_server_that_leaves_in_the_middle(folder: Path) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
        await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(leave, folder / "s"), client(folder / "s") as http:
        with pytest.raises(httpcore2.RemoteProtocolError):
            await http.request("GET", "http://x/", headers=[(b"host", b"x")])


@pytest.mark.parametrize("long", ["1s" * 1000, "1" * 1000 + "s", "-" + "1h" * 33])
def test_how_long_is_said_in_a_few_characters(long: str) -> None:
    """A pattern that repeats takes memory for each time: hundreds of bytes for each of some millions."""
    with pytest.raises(InvalidRequest, match="keep_alive"):
        seconds(long)
