"""Whose a request is, told by the parent, which has looked at its key, to a child, which has no keys.

What a client sends under this name goes no further than the parent. Nobody else reaches a child's socket; should
somebody, being of the same user, then without the secret of this child every request is refused.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping

import msgspec

from llamafast.api.keys import Key
from llamafast.engine.types import Tenant
from llamafast.errors import InvalidKey, PermissionDenied

HEADER = b"x-llamafast-tenant"


class _Told(msgspec.Struct):
    tenant: Tenant
    admin: bool
    peer: str = ""


_DECODER = msgspec.json.Decoder(_Told)


def told(tenant: Tenant, admin: bool, secret: str, peer: str = "") -> bytes:
    """The header's value; ``peer`` is who has asked the parent, for the log."""
    return secret.encode() + b" " + msgspec.json.encode(_Told(tenant, admin, peer))


class ToldKeys:
    """What a child knows of keys: each request says whose it is, and proves that the parent says so."""

    # wherever they are; the others that the parent looks at are for some endpoints only
    read_in_front: frozenset[str] = frozenset({"model", "keep_alive", "ttl", "rid"})

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def authenticate(self, headers: Mapping[bytes, bytes]) -> Key | None:
        """Raises InvalidKey for a request that is not the parent's."""
        secret, _, what = headers.get(HEADER, b"").partition(b" ")
        if not hmac.compare_digest(secret, self._secret):
            raise InvalidKey("this socket is the server's own")
        told = _DECODER.decode(what)
        return Key(b"", told.tenant, told.admin, peer=told.peer)

    def tenant(self, key: Key | None) -> Tenant:
        assert key is not None
        return key.tenant

    def require_admin(self, key: Key | None) -> None:
        """Raises PermissionDenied."""
        if key is None or not key.admin:
            raise PermissionDenied("this needs a key that is marked `admin` in the file `server.api_key_file`")
