"""Media that a request names by a URL: which hosts may be asked, and what they may answer.

Sole user of httpcore2. A name is resolved once, and what was checked is what is connected to: a name whose address
changes in between (DNS rebinding) gains nothing. Errors name the host as the client wrote it, never an address.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpcore2

from llamafast.config import MtmdConfig, ascii_host
from llamafast.errors import InvalidMedia
from llamafast.media.addresses import is_public
from llamafast.media.limits import ByteLimit, FetchedItem
from llamafast.media.local_file import read_local_file

MAX_REDIRECTS = 3
MAX_FETCHES = 8
_REDIRECTS = (301, 302, 303, 307, 308)
# in a path and a query, RFC 3986
_AS_IT_STANDS = "%/?:@!$&'()*+,;=~-._[]"
_HEADERS = [(b"accept", b"*/*"), (b"accept-encoding", b"identity"), (b"user-agent", b"llamafast")]


class _NotPublic(Exception):
    """A host has an address that is not the public Internet's."""


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to public addresses only, and for hosts in ``private`` to any."""

    def __init__(self, private: frozenset[str] | None) -> None:
        self._private = private
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2 names it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        if self._private is not None and host.lower() not in self._private and not all(map(is_public, addresses)):
            raise _NotPublic
        failure: Exception = httpcore2.ConnectError("no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore2.ConnectError as error:
                failure = error
        raise failure


class MediaFetcher:
    """Reads what http, https and file URLs name, as ``config`` allows. Used on one event loop."""

    def __init__(self, config: MtmdConfig) -> None:
        self._hosts = frozenset(map(ascii_host, config.allowed_media_domains or ()))
        self._folder = None if config.allowed_local_media_path is None else Path(config.allowed_local_media_path)
        self._seconds = config.image_timeout_seconds
        private = None if config.allow_private_media else self._hosts
        # a connection is not kept: whom it leads to is looked at each time
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=MAX_FETCHES, max_keepalive_connections=0, network_backend=_CheckedBackend(private)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._pool.aclose()

    async def fetch(self, url: str, limit: ByteLimit, item: FetchedItem) -> bytes | bytearray:
        """Its bytes, within ``image_timeout_seconds`` in all. Raises InvalidMedia or QueueFull."""
        parts = _split(url)
        if parts.scheme == "file":
            return await asyncio.to_thread(read_local_file, parts, self._folder, limit, item)
        host = self._host(parts)
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(parts, limit, item)
        except TimeoutError:
            raise InvalidMedia(f"fetching from {host} took longer than {self._seconds:g} s") from None

    def _host(self, url: SplitResult) -> str:
        """The host of a URL that may be asked. Raises InvalidMedia."""
        if url.scheme not in {"http", "https"}:
            raise InvalidMedia("media come as data:, http:, https: or file: URLs")
        try:
            host, _ = ascii_host(url.hostname or ""), url.port
        except (UnicodeError, ValueError):
            host = ""
        if not host:
            raise InvalidMedia("the URL names no host")
        if "@" in url.netloc:
            raise InvalidMedia("URLs with a user name or password are not fetched")
        if self._hosts and host not in self._hosts:
            raise InvalidMedia(f"media of host {host} are not allowed")
        return host

    async def _follow(self, url: SplitResult, limit: ByteLimit, item: FetchedItem) -> bytearray:
        for _ in range(MAX_REDIRECTS + 1):
            host = self._host(url)
            try:
                answer = await self._ask(url, host, limit, item)
            except _NotPublic:
                raise InvalidMedia(f"{host} is not a public host") from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError):
                raise InvalidMedia(f"fetching from {host} failed") from None
            if isinstance(answer, bytearray):
                return answer
            target = _split(urljoin(url.geturl(), answer))
            if url.scheme == "https" and target.scheme != "https":
                raise InvalidMedia(f"fetching from {host} failed: it leads away from https")
            url = target
        raise InvalidMedia(f"fetching from {self._host(url)} failed: more than {MAX_REDIRECTS} redirects")

    async def _ask(self, url: SplitResult, host: str, limit: ByteLimit, item: FetchedItem) -> bytearray | str:
        """What a host answers: bytes, or where it says that they are."""
        path = quote((url.path or "/") + (f"?{url.query}" if url.query else ""), _AS_IT_STANDS)
        target = httpcore2.URL(scheme=url.scheme.encode(), host=host.encode(), port=url.port, target=path.encode())
        async with self._pool.stream("GET", target, headers=_HEADERS) as response:
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in headers:
                return headers[b"location"].decode("latin-1")
            if response.status != 200:
                raise InvalidMedia(f"fetching from {host} failed: HTTP {response.status}")
            if headers.get(b"content-encoding", b"identity").lower() != b"identity":
                raise InvalidMedia(f"fetching from {host} failed: it sent what nobody asked for, a content-encoding")
            length = headers.get(b"content-length", b"")
            if length.isdigit():
                limit.check(int(length))
            data = bytearray()
            async for part in response.aiter_stream():
                data += part
                limit.check(len(data))
                item.grow(len(data))
        return data


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise InvalidMedia("the URL is not valid") from None
