"""Who may share what was computed for a prefix.

Whatever keeps or lends computed tokens, in KV cells, in host memory or elsewhere, tells them apart by these bytes and
by nothing else.
"""

from __future__ import annotations

from struct import pack

import xxhash
from msgspec import Struct

_PRIVATE = b"private "


class Adapter(Struct, frozen=True):
    """An adapter as it was applied: the SHA-256 of its file and its scale."""

    digest: bytes
    scale: float


class PrefixKey(Struct, frozen=True, kw_only=True):
    """Two requests share exactly if their keys are equal.

    ``tenant`` is who asks (``Tenant.salt``), ``cache_salt`` the client's own division, ``adapters`` what changed the
    weights, in order. A sequence with a number of its own as ``private`` shares with nobody.
    """

    tenant: str = ""
    cache_salt: str = ""
    adapters: tuple[Adapter, ...] = ()
    private: int | None = None

    def encoded(self) -> bytes:
        """Unequal keys have unequal bytes, as each field is preceded by its length; b"" is the key of anybody, and
        those of private ones begin with what no other does."""
        if self == ANYBODYS:
            return b""
        fields = (
            self.tenant.encode(),
            self.cache_salt.encode(),
            b"".join(_field(adapter.digest + pack("<d", adapter.scale)) for adapter in self.adapters),
            b"" if self.private is None else b"%d" % self.private,
        )
        return (b"" if self.private is None else _PRIVATE) + b"".join(map(_field, fields))


def is_private(encoded: bytes) -> bool:
    """Whether nobody will ever ask for what was computed under this key, but for who did."""
    return encoded.startswith(_PRIVATE)


ANYBODYS = PrefixKey()


def digest_of(encoded: bytes) -> int:
    """The parent of a prompt's first block (docs/decisions/01-digests.md)."""
    return xxhash.xxh3_64_intdigest(encoded)


def _field(field: bytes) -> bytes:
    return b"%d:%b" % (len(field), field)
