"""Fetching from hosts that lie, lead elsewhere, drip, or are nobody's business."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpcore2
import pytest
from support.answering import listening

from llamafast.config import MtmdConfig
from llamafast.errors import InvalidMedia, QueueFull
from llamafast.media import fetch
from llamafast.media.fetch import MediaFetcher
from llamafast.media.limits import ByteLimit, FetchedBytes, FetchedItem

LIMIT = ByteLimit("image", 1000)
DATA = bytes(range(256))
Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


def config(**settings: Any) -> MtmdConfig:
    settings = {"allow_private_media": True, "image_timeout_seconds": 60.0} | settings
    return MtmdConfig(mmproj_path="unused", **settings)


def item(all_held: FetchedBytes | None = None) -> FetchedItem:
    return FetchedItem(all_held or FetchedBytes(10**6))


@asynccontextmanager
async def host(answer: Answer) -> AsyncIterator[int]:
    """A port where ``answer`` gets each request's path."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        await answer(head.split(" ")[1], writer)

    async with listening(converse) as port:
        yield port


def reply(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
    fields = {"content-length": len(body), "connection": "close"} | {k.replace("_", "-"): v for k, v in headers.items()}
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def answers(of_path: dict[str, bytes]) -> Answer:
    async def answer(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(of_path.get(path, reply(b"", "404 Not Found")))

    return answer


async def refused(url: str, settings: MtmdConfig, limit: ByteLimit = LIMIT) -> str:
    async with MediaFetcher(settings) as fetcher:
        with pytest.raises(InvalidMedia) as caught:
            await fetcher.fetch(url, limit, item())
    assert "127.0.0.1" not in caught.value.message or "127.0.0.1" in url
    return caught.value.message


async def test_bytes_come_whole_and_redirects_are_followed() -> None:
    pages = {
        "/a": reply(DATA), "/q?x=%C3%A4&y=z": reply(b"query"), "/%C3%A4": reply(b"path"),
        "/1": reply(b"", "302 Found", location="/2"), "/2": reply(b"", "307 Temporary Redirect", location="3"),
        "/3": reply(b"", "301 Moved", location="a"),
    }  # fmt: skip
    async with host(answers(pages)) as port, MediaFetcher(config()) as fetcher:
        for path, wanted in (("/a", DATA), ("/1", DATA), ("/q?x=%C3%A4&y=z", b"query"), ("/ä", b"path")):
            assert await fetcher.fetch(f"http://localhost:{port}{path}", LIMIT, item()) == wanted


async def test_a_chunked_answer_is_read() -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n"
    async with host(answers({"/": chunked})) as port, MediaFetcher(config()) as fetcher:
        assert await fetcher.fetch(f"HTTP://LOCALHOST:{port}", LIMIT, item()) == b"helloyou"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (reply(b"", "404 Not Found"), "fetching from localhost failed: HTTP 404"),
        (reply(b"", "500 No"), "fetching from localhost failed: HTTP 500"),
        (reply(b"", "304 Not Modified"), "fetching from localhost failed: HTTP 304"),
        (reply(b"", "302 Found"), "fetching from localhost failed: HTTP 302"),
        (reply(b"", "302 Found", location="/x"), "more than 3 redirects"),
        (reply(b"", "302 Found", location="ftp://localhost/x"), "http:, https: or file: URLs"),
        (reply(b"", "302 Found", location="http://u:p@localhost/"), "user name or password"),
        (reply(b"x", content_encoding="gzip"), "content-encoding"),
        (reply(bytes(1001)), r"larger than model.mtmd.image_max_bytes \(1000\)"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000), r"larger than model.mtmd.image_max_bytes \(1000\)"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nshort", "fetching from localhost failed"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "fetching from localhost failed"),
        (b"", "fetching from localhost failed"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, "fetching from localhost failed"),
    ],
)  # fmt: skip
async def test_what_is_no_answer_is_refused(answer: bytes, sentence: str) -> None:
    pages = {"/": answer, "/x": answer}
    async with host(answers(pages)) as port:
        message = await refused(f"http://localhost:{port}/", config())
    assert re.search(sentence, message)


async def test_one_deadline_for_all_of_it() -> None:
    async def drip(path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with host(drip) as port:
        async with asyncio.timeout(30):
            message = await refused(f"http://localhost:{port}/", config(image_timeout_seconds=0.3))
    assert message == "fetching from localhost took longer than 0.3 s"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a", "gopher://example.com", "javascript:alert(1)", "example.com/a.png", "", "//example.com/",
        "http://", "http:///a", "http://user@example.com/", "http://a:b@example.com/", "http://[::1",
        "http://example.com:x/", "http://example.com:99999/", "http://ä\ud800.com/", "http://" + "ä" * 300 + ".com/",
    ],
)  # fmt: skip
async def test_urls_that_name_no_host_to_ask(url: str) -> None:
    await refused(url, config())


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
async def test_this_machine_is_no_public_host(name: str) -> None:
    asked = []

    async def note(path: str, writer: asyncio.StreamWriter) -> None:
        asked.append(path)

    async with host(note) as port:
        message = await refused(f"http://{name}:{port}/", config(allow_private_media=False))
    assert message == f"{name.strip('[]')} is not a public host"
    assert not asked


async def test_hosts_that_the_config_names_may_be_private_and_no_others_are_asked() -> None:
    pages = {"/": reply(DATA), "/away": reply(b"", "302 Found", location="http://elsewhere.example/")}
    settings = config(allow_private_media=False, allowed_media_domains=("LocalHost",))
    async with host(answers(pages)) as port:
        async with MediaFetcher(settings) as fetcher:
            assert await fetcher.fetch(f"http://LOCALHOST.:{port}/", LIMIT, item()) == DATA
        assert await refused("http://example.com/a.png", settings) == "media of host example.com are not allowed"
        assert (
            await refused(f"http://localhost:{port}/away", settings)
            == "media of host elsewhere.example are not allowed"
        )


class Resolver:
    """Says of a name one address after another; what was connected to is kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.connected: list[str] = []
        self._addresses = list(addresses)
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "getaddrinfo", self._find, raising=False)
        monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", self._connect)

    async def _find(self, host: str, port: int, **_: object) -> list[Any]:
        address = self._addresses.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in address.split(",")]

    async def _connect(self, address: str, *_: object) -> httpcore2.AsyncNetworkStream:
        self.connected.append(address)
        raise httpcore2.ConnectError


async def test_what_was_checked_is_what_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second time the name is this machine's."""
    resolver = Resolver(monkeypatch, "1.1.1.1", "127.0.0.1")
    settings = config(allow_private_media=False)
    assert await refused("http://rebinds.example/", settings) == "fetching from rebinds.example failed"
    assert resolver.connected == ["1.1.1.1"]
    assert await refused("http://rebinds.example/", settings) == "rebinds.example is not a public host"
    assert resolver.connected == ["1.1.1.1"]


async def test_one_private_address_among_others_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, "1.1.1.1,10.0.0.1")
    assert "not a public host" in await refused("http://two.example/", config(allow_private_media=False))
    assert not resolver.connected


@pytest.mark.parametrize("allowed", ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.example", "bücher。example"])
@pytest.mark.parametrize("asked", ["bücher.example", "BÜCHER.example", "xn--bcher-kva.EXAMPLE."])
async def test_a_name_in_any_script_is_one_and_the_same_in_the_config_and_in_a_url(
    monkeypatch: pytest.MonkeyPatch, allowed: str, asked: str
) -> None:
    resolver = Resolver(monkeypatch, "10.0.0.1")
    settings = config(allow_private_media=False, allowed_media_domains=(allowed,))
    assert await refused(f"http://{asked}/", settings) == "fetching from xn--bcher-kva.example failed"
    assert resolver.connected == ["10.0.0.1"]
    assert (
        await refused("http://bücher.elsewhere/", settings) == "media of host xn--bcher-kva.elsewhere are not allowed"
    )


async def test_a_redirect_away_from_https_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(self: MediaFetcher, url: Any, host: str, limit: ByteLimit, item: FetchedItem) -> bytes | str:
        return "http://example.com/"

    monkeypatch.setattr(fetch.MediaFetcher, "_ask", ask)
    assert "away from https" in await refused("https://example.com/", config())


async def test_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(DATA)
    async with MediaFetcher(config(allowed_local_media_path=str(tmp_path))) as fetcher:
        assert await fetcher.fetch(f"file://{tmp_path}/a.png", LIMIT, item()) == DATA
    assert "need model.mtmd.allowed_local_media_path" in await refused(f"file://{tmp_path}/a.png", config())


async def test_all_that_was_fetched_and_is_held_stays_within_a_number_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(DATA)
    settings = config(allowed_local_media_path=str(tmp_path))
    all_held = FetchedBytes(2 * len(DATA) + 10)
    async with host(answers({"/": reply(DATA)})) as port, MediaFetcher(settings) as fetcher:
        first, second, third = (item(all_held) for _ in range(3))
        url, file = f"http://localhost:{port}/", f"file://{tmp_path}/a.png"
        await fetcher.fetch(url, LIMIT, first)
        await fetcher.fetch(file, LIMIT, second)
        assert all_held.held == 2 * len(DATA)
        for other in (url, file):
            with pytest.raises(QueueFull, match="hold 512 bytes already"):
                await fetcher.fetch(other, LIMIT, third)
        del first
        assert await fetcher.fetch(url, LIMIT, third) == DATA
        del second, third
        assert all_held.held == 0
