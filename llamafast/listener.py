"""Where the server listens, found out before the model loads: an address or a Unix socket, with TLS or without, and
who can come from there."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from llamafast.config import ServerConfig
from llamafast.errors import ConfigError
from llamafast.tls import tls_options


class Address(NamedTuple):
    """``host`` as configured, ``ip`` what it means here. ``port`` is not 0."""

    host: str
    ip: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return ipaddress.ip_address(self.ip.partition("%")[0]).is_loopback

    @property
    def authority(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Listener:
    """``options`` are Granian's, ``hosts`` the names by which the server may be called (None: any). A Unix socket's
    file is Granian's from ``bound`` to ``remove``."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises ConfigError: better now than when the model has loaded."""
        tls = tls_options(config)
        scheme = "https" if tls else "http"
        self._uds: Path | None = None
        self._inode = 0
        self._address: Address | None = None
        if config.uds is not None:
            self._uds = find_socket(config.uds)
            self.url = f"{scheme}+unix://{quote(str(self._uds), safe='')}/v1"
            self.options: dict[str, Any] = {"uds": self._uds, **tls}
        else:
            self._address = find_address(config.host, config.port)
            self.url = f"{scheme}://{self._address.authority}/v1"
            self.options = {"address": self._address.ip, "port": self._address.port, **tls}
        self.hosts = self._hosts(config)

    @property
    def port(self) -> int | None:
        """None for a Unix socket."""
        return None if self._address is None else self._address.port

    @property
    def public_ip(self) -> str | None:
        """Where others than this machine's processes reach it."""
        return None if self._address is None or self._address.is_loopback else self._address.ip

    def _hosts(self, config: ServerConfig) -> tuple[str, ...] | None:
        """The names it answers to. On a loopback address strangers come through a browser of this machine, under names
        that were made to lead there."""
        if self._address is None or not self._address.is_loopback:
            return config.allowed_hosts
        return (config.host, *(config.allowed_hosts or ()))

    def bound(self) -> None:
        """Granian has the socket."""
        if self._uds is not None:
            self._inode = self._uds.stat().st_ino

    def remove(self) -> None:
        """Remove the Unix socket's file, unless it is another's by now. To be called while Granian listens, as the
        number of its inode is nobody else's until then."""
        if self._uds is not None and self._inode:
            with suppress(OSError):
                if self._uds.stat().st_ino == self._inode:
                    self._uds.unlink()
            self._inode = 0


def find_address(host: str, port: int) -> Address:
    """Resolve ``host`` and choose a free port for 0. Raises ConfigError."""
    faults: list[Exception] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
                    ip, bound, *_ = probe.getsockname()
                    return Address(host, ip, bound)
            except OSError as error:
                faults.append(error)
    except (OSError, UnicodeError) as error:
        faults.append(error)
    reason = getattr(faults[0], "strerror", None) or faults[0]
    raise ConfigError(f"server: cannot listen on {host}:{port}: {reason}")


def find_socket(uds: str) -> Path:
    """The place of a socket that can be made; one that a dead server has left behind goes. Raises ConfigError."""
    try:
        path = Path(uds).resolve()
        if path.is_socket():
            if _answers(path):
                raise ConfigError(f"server.uds: a server listens on {uds} already")
            path.unlink()
        elif path.exists():
            raise ConfigError(f"server.uds: {uds} is there, and is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
        path.unlink()
        return path
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"server.uds: cannot listen on {Path(uds).absolute()}: {reason}") from error


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            with suppress(BlockingIOError):  # as many wait there as may
                client.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True
