"""Which web pages may use this server, and by which names it may be called.

A browser runs the scripts of any page beside a server that listens on this machine. It tells where a script comes from
(``Origin``) and under which name it found the server (``Host``); both are nothing a script can choose. An attacker's
name that resolves to a loopback address (DNS rebinding) shows in ``Host``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection, Mapping

from llamafast.api.http import Headers
from llamafast.config import ServerConfig
from llamafast.errors import HostNotAllowed, OriginNotAllowed

ANY = "*"
_EXPOSE: Headers = (
    (
        b"access-control-expose-headers",
        b"x-request-id, request-id, retry-after, retry-after-ms, x-should-retry, www-authenticate, x-llamafast-ignored",
    ),
)
# Whether a page may read the reply depends on where it comes from: caches in between have to know.
_VARY: Headers = ((b"vary", b"origin"),)


class Origins:
    """Pages of ``cors_origins`` (``https://chat.example.com``, or ``*``) may use this server, and those that it serves
    itself. ``hosts``: the names it answers to where it listens, beside those of this machine's loopback, a leading dot
    for all names below one; None or ``*``: to any."""

    def __init__(self, config: ServerConfig, hosts: Collection[str] | None) -> None:
        self._allowed = frozenset(origin.lower().encode() for origin in config.cors_origins)
        self._any = ANY.encode() in self._allowed
        self._hosts = None if hosts is None or ANY in hosts else {*map(str.lower, hosts), socket.gethostname().lower()}

    def check(self, headers: Mapping[bytes, bytes], *, any_host: bool = False) -> None:
        """Raises HostNotAllowed, unless ``any_host`` will do, or OriginNotAllowed. A request that names neither is no
        browser's, or reads nothing that its page may see. Granian makes an empty Host of none."""
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if host and not any_host and self._hosts is not None and not _is_named(_name(host), self._hosts):
            raise HostNotAllowed("this server does not answer to that name; add it to `server.allowed_hosts`")
        if origin is not None and not self._any and not self._is_allowed(origin, host):
            raise OriginNotAllowed("pages of this origin may not use this server; add it to `server.cors_origins`")

    def reply_headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        """What tells a browser that the page may read the reply; nothing for who is not a page."""
        origin = headers.get(b"origin")
        if self._any:
            return () if origin is None else ((b"access-control-allow-origin", b"*"), *_EXPOSE)
        if not self._allowed:
            return ()
        if origin is None or origin.lower() not in self._allowed:
            return _VARY
        return ((b"access-control-allow-origin", origin), *_EXPOSE, *_VARY)

    def _is_allowed(self, origin: bytes, host: bytes | None) -> bool:
        origin = origin.lower()
        # behind a proxy that ends TLS the scheme is not known: the name and port have to do
        return origin in self._allowed or (bool(host) and origin.partition(b"://")[2] == (host or b"").lower())


def _name(host: bytes) -> str:
    """The name or address in a Host header, without its port."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


def _is_named(name: str, hosts: Collection[str]) -> bool:
    """Whether ``name`` is this machine's own or one of ``hosts``."""
    if name in hosts or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return any(host.startswith(".") and (name.endswith(host) or name == host[1:]) for host in hosts)
    # 0.0.0.0 and :: are this machine for who connects to them
    return address.is_loopback or address.is_unspecified
