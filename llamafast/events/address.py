"""Where events go: an endpoint of ZeroMQ's that only a private network reaches.

Events have the tokens of prompts in clear, and whoever connects is told: there is no authentication in the protocol.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llamafast.errors import ConfigError

PROC = Path("/proc/net")

_TCP = re.compile(r"tcp://(?P<host>\*|\[[^\]]+\]|[^:\[\]]+):(?P<port>\*|[0-9]{1,5})")
_LOCAL = re.compile(r"(\d+\.\d+\.\d+\.\d+)\n\s+/32 host LOCAL")


class Endpoint(NamedTuple):
    """``binds``: whether others connect here; else it is another machine's, as indexers have it."""

    url: str
    binds: bool
    is_ipv6: bool = False


def endpoint_of(url: str, key: str, proc: Path = PROC) -> Endpoint:
    """What ``url``, the config's ``key``, means on this machine. Raises ConfigError, also where strangers could read
    there."""
    if url.startswith("ipc://") and len(url) > len("ipc://"):
        return Endpoint(url, binds=True)
    if (parts := _TCP.fullmatch(url)) is None or (parts["port"] != "*" and int(parts["port"]) > 65535):
        raise ConfigError(f"{key}: {url} is neither tcp://HOST:PORT nor ipc://PATH")
    host = parts["host"].strip("[]")
    if host == "*":
        _check_machine(url, key, proc, with_ipv6=False)
        return Endpoint(url, binds=True)
    if host in {name for _, name in socket.if_nameindex()}:
        return Endpoint(url, binds=True)
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{key}: {url}: {getattr(error, 'strerror', None) or error}") from error
    is_ipv6 = all(":" in ip for ip in found)
    for ip in found:
        if _meant(ip).is_unspecified:
            _check_machine(url, key, proc, with_ipv6=is_ipv6)
        check_private(ip, url, key)
    return Endpoint(url, binds=all(map(_is_here, found)), is_ipv6=is_ipv6)


def check_private(ip: str, url: str, key: str) -> None:
    """Raises ConfigError for an address that the whole Internet may reach."""
    if _meant(ip).is_global:
        raise ConfigError(
            f"{key}: {url} is at the public address {ip}: events have prompts in clear and are told to whoever "
            "connects. Name an address of a private network, or 127.0.0.1"
        )


def _meant(ip: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv6 address may stand for one of IPv4, which not every Python goes by."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _check_machine(url: str, key: str, proc: Path, *, with_ipv6: bool) -> None:
    """Raises ConfigError unless all addresses of the machine are private, and known."""
    try:
        addresses = list(_addresses(proc, with_ipv6=with_ipv6))
    except OSError as error:
        raise ConfigError(f"{key}: {url}: this machine's addresses are not known: name one of them") from error
    for ip in addresses:
        check_private(ip, url, key)


def _addresses(proc: Path, *, with_ipv6: bool) -> Iterator[str]:
    """Those that Linux tells. Raises OSError."""
    yield from _LOCAL.findall((proc / "fib_trie").read_text())
    if with_ipv6:
        for line in (proc / "if_inet6").read_text().splitlines():
            yield str(ipaddress.IPv6Address(int(line.split()[0], 16)))


def _is_here(ip: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
        return True
