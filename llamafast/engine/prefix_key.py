"""Who may share what was computed for a prefix.

Whatever keeps or lends computed tokens, in KV cells, in host memory or elsewhere, tells them apart by these bytes and
by nothing else.
"""

from __future__ import annotations

from struct import pack

import xxhash
from msgspec import Struct

from llamafast._core.invocation import Invocation

_PRIVATE = b"private "


class Adapter(Struct, frozen=True):
    """An adapter as it was applied: the SHA-256 of its file and its scale."""

    digest: bytes
    scale: float


class PrefixKey(Struct, frozen=True, kw_only=True):
    """Two requests share exactly if their keys are equal.

    ``tenant`` is who asks (``Tenant.salt``), ``cache_salt`` the client's own division, ``adapters`` what changed the
    weights, in order; with ``invoked_at`` one of them did so from that token on alone, and before it the others. What
    has a number of its own as ``private`` shares with nobody else: a sequence, or all those of a request.
    """

    tenant: str = ""
    cache_salt: str = ""
    adapters: tuple[Adapter, ...] = ()
    invoked_at: int | None = None
    private: int | None = None

    def encoded(self) -> bytes:
        """Unequal keys have unequal bytes, as each field is preceded by its length; b"" is the key of anybody, and
        those of private ones begin with what no other does."""
        if self == ANYBODYS:
            return b""
        fields = [
            self.tenant.encode(),
            self.cache_salt.encode(),
            b"".join(_field(adapter.digest + pack("<d", adapter.scale)) for adapter in self.adapters),
            b"" if self.private is None else b"%d" % self.private,
        ]
        if self.invoked_at is not None:
            fields.append(b"%d" % self.invoked_at)
        return (b"" if self.private is None else _PRIVATE) + b"".join(map(_field, fields))


def is_private(encoded: bytes) -> bool:
    """Whether nobody will ever ask for what was computed under this key, but for who did."""
    return encoded.startswith(_PRIVATE)


def salt_at(n_tokens: int, salt: bytes, invocation: Invocation | None) -> bytes:
    """Whose the first ``n_tokens`` tokens of a sequence are, which begins as one of ``salt``."""
    return salt if invocation is None or n_tokens <= invocation.at else invocation.salt


ANYBODYS = PrefixKey()


def digest_of(encoded: bytes) -> int:
    """The parent of a prompt's first block (docs/decisions/01-digests.md)."""
    return xxhash.xxh3_64_intdigest(encoded)


def _field(field: bytes) -> bytes:
    return b"%d:%b" % (len(field), field)
