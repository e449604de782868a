"""Which addresses are the public Internet's. Everything else is this machine's or its network's, which a client must
not reach through this server."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# RFC 6052 and RFC 8215: the last 32 bits are an IPv4 address in the first, anything in the second.
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
# RFC 6890: of protocols, but what it is not by every version of Python
_PROTOCOLS = IPv4Network("192.0.0.0/24")


def is_public(text: str) -> bool:
    """Whether a numeric address is, and every IPv4 address that an IPv6 one stands for."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    inner = _embedded(address) if isinstance(address, IPv6Address) else []
    return all(map(_is_global, [address, *inner] if inner is not None else [])) and inner is not None


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address in _NAT64):
        return True  # what it stands for decides
    if address in _PROTOCOLS:
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: IPv6Address) -> list[IPv4Address] | None:
    """The IPv4 addresses that it stands for; None: what it stands for is not known."""
    if address in _NAT64_LOCAL:
        return None
    if address in _NAT64:
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    return [one for one in inner if one is not None]
