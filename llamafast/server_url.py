"""Where a server is that somebody names to a client of ours, and the key that it is asked with."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from llamafast.errors import ConfigError

_PORTS = {"http": 80, "https": 443}


class ServerURL(NamedTuple):
    """``scheme`` is http or https; ``prefix`` stands before every path, without /v1."""

    scheme: str
    host: str
    port: int
    prefix: str

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def root(self) -> str:
        """What stands before /v1."""
        return f"{self.scheme}://{self.authority}{self.prefix}"


def read_url(url: str) -> ServerURL:
    """The server at ``url``, with or without /v1. Raises ConfigError for an address that is none."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{url}: is no address of a server, such as http://127.0.0.1:8000")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return ServerURL(parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port, prefix)


def check_key(key: str) -> str:
    """The same key. Raises ConfigError for one that no header may have."""
    if any(not " " <= letter <= "~" for letter in key):
        raise ConfigError("the key has characters that no header may have")
    return key
