"""httpcore2 over the event loop's own transports: TCP, TLS and Unix sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpcore2
import pytest
import trustme

from llamafast.loop_sockets import Crowded, LoopBackend, Scarce

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
FOREVER = 3600.0


class Answering(asyncio.Protocol):
    """Answers each request that is whole; knows in how many pieces it came."""

    pieces: list[bytes]
    connections: int

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self.transport = cast(asyncio.Transport, transport)
        self.body = b""
        type(self).connections += 1

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self.body += data
        head, blank, body = self.body.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        if blank and len(body) == length:
            self.body = b""
            self.transport.write(ANSWER)


Protocol = type[Answering]


@pytest.fixture
def answering() -> Protocol:
    return type("Counting", (Answering,), {"pieces": [], "connections": 0})


@asynccontextmanager
async def listening(protocol: Callable[[], asyncio.Protocol], **options: Any) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, **options)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def stream_to(port: int) -> httpcore2.AsyncNetworkStream:
    return await LoopBackend().connect_tcp("127.0.0.1", port)


async def test_the_head_and_the_body_of_a_request_go_together(answering: Protocol) -> None:
    async with (
        listening(answering) as port,
        httpcore2.AsyncConnectionPool(network_backend=LoopBackend()) as pool,
    ):
        for _ in range(3):
            response = await pool.request("POST", f"http://127.0.0.1:{port}/v1/completions", content=b'{"prompt": "a"}')
            assert (response.status, response.content) == (200, b"ok")
    assert answering.connections == 1
    assert [piece.count(b'{"prompt": "a"}') for piece in answering.pieces] == [1, 1, 1]


async def test_over_a_unix_socket_too(answering: Protocol, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with (
        await asyncio.get_running_loop().create_unix_server(answering, path),
        httpcore2.AsyncConnectionPool(uds=path, network_backend=LoopBackend()) as pool,
    ):
        response = await pool.request("POST", "http://localhost/", content=b"{}")
        assert response.content == b"ok"
    assert len(answering.pieces) == 1


async def test_a_long_body_is_sent_as_it_comes(answering: Protocol) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(32 * 1024)

    async with (
        listening(answering) as port,
        httpcore2.AsyncConnectionPool(network_backend=LoopBackend()) as pool,
    ):
        length = {"content-length": str(64 * 32 * 1024)}
        response = await pool.request("POST", f"http://127.0.0.1:{port}/", headers=length, content=body())
        assert response.content == b"ok"
    assert len(answering.pieces) > 1


async def test_tls_is_spoken_to_whom_the_context_trusts(answering: Protocol) -> None:
    authority, theirs, ours = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    async with listening(answering, ssl=theirs) as port:
        url = f"https://127.0.0.1:{port}/"
        async with httpcore2.AsyncConnectionPool(network_backend=LoopBackend(), ssl_context=ours) as pool:
            with pytest.raises(httpcore2.ConnectError, match="certificate verify failed"):
                await pool.request("POST", url, content=b"{}")
        authority.configure_trust(ours)
        async with httpcore2.AsyncConnectionPool(network_backend=LoopBackend(), ssl_context=ours) as pool:
            response = await pool.request("POST", url, content=b"{}")
    assert response.content == b"ok"
    assert len(answering.pieces) == 1


async def test_a_connection_that_is_refused_is_told_as_httpcore_does(tmp_path: Path) -> None:
    async with listening(Answering) as port:
        pass
    with pytest.raises(httpcore2.ConnectError, match=r"refused|Connect call failed"):
        await stream_to(port)
    with pytest.raises(httpcore2.ConnectError):
        await LoopBackend().connect_unix_socket(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("number", "kind"),
    [("EMFILE", Scarce), ("ENOMEM", Scarce), ("EAGAIN", Crowded), ("ECONNREFUSED", httpcore2.ConnectError)],
)
async def test_what_may_pass_is_told_from_what_does_not(
    monkeypatch: pytest.MonkeyPatch, number: str, kind: type[Exception]
) -> None:
    import errno

    async def fails(*_: Any, **__: Any) -> None:
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fails)
    with pytest.raises(kind) as told:
        await stream_to(1)
    assert type(told.value) is kind


class Silent(asyncio.Protocol):
    """Reads nothing and says nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        self.transport = transport


async def _fill(stream: httpcore2.AsyncNetworkStream) -> None:
    while True:  # until the buffers of both ends are full
        await stream.write(bytes(1 << 20), timeout=0.0)


async def _never(*_: Any, **__: Any) -> None:
    await asyncio.get_running_loop().create_future()


async def test_each_wait_has_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Silent()
    async with listening(lambda: other) as port:
        stream = await stream_to(port)
        with pytest.raises(httpcore2.ReadTimeout):
            await stream.read(1024, timeout=0.0)
        with pytest.raises(httpcore2.WriteTimeout):
            await _fill(stream)
        with pytest.raises(httpcore2.ConnectTimeout):
            await stream.start_tls(ssl.create_default_context(), "localhost", timeout=0.0)
        await stream.aclose()
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", _never)
        with pytest.raises(httpcore2.ConnectTimeout):
            await LoopBackend().connect_tcp("127.0.0.1", port, timeout=0.0)
    other.transport.abort()


class Closing(asyncio.Protocol):
    """Says something and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"bye")
        transport.close()


async def test_the_other_end_may_leave() -> None:
    async with listening(Closing) as port:
        stream = await stream_to(port)
        said = b""
        while piece := await stream.read(1024, timeout=FOREVER):
            said += piece
        assert said == b"bye"
        assert stream.get_extra_info("is_readable") is True
        with pytest.raises(httpcore2.WriteError):
            await stream.write(b"late")
        assert await stream.read(1024) == b""
        await stream.aclose()


async def test_a_reader_that_is_behind_holds_up_the_writer() -> None:
    n_bytes = 8 << 20

    class Telling(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(bytes(n_bytes))
            transport.close()

    async with listening(Telling) as port:
        stream = await stream_to(port)
        sizes = [len(piece) async for piece in _pieces(stream)]
    assert sum(sizes) == n_bytes
    assert max(sizes) < n_bytes / 2  # never more than its bound and what was under way


async def _pieces(stream: httpcore2.AsyncNetworkStream) -> AsyncIterator[bytes]:
    while piece := await stream.read(1 << 20, timeout=FOREVER):
        yield piece


def run(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def test_within_uvloop_as_within_asyncio(answering: Protocol) -> None:
    async def ask() -> None:
        async with (
            listening(Answering) as port,
            httpcore2.AsyncConnectionPool(network_backend=LoopBackend()) as pool,
        ):
            assert (await pool.request("POST", f"http://127.0.0.1:{port}/", content=b"{}")).content == b"ok"

    Answering.pieces, Answering.connections = [], 0
    run(ask())
    assert len(Answering.pieces) == 1
