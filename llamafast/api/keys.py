"""API keys: which there are, whose they are and what they allow."""

from __future__ import annotations

import hmac
import logging
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from llamafast.config import KEY_VARIABLE, ServerConfig
from llamafast.engine.types import ANYBODY, Tenant
from llamafast.errors import ConfigError, InvalidKey, PermissionDenied

log = logging.getLogger(__name__)

VARIABLE_NAME = "default"
# What a file may hold: it is read while the server answers.
MAX_FILE_BYTES = 1 << 20
MAX_SECRET_BYTES = 4096

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}", re.ASCII)
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})", re.ASCII)
# what HTTP headers can carry as one word
_SECRET = re.compile(r"[!-~]+", re.ASCII)
_FIELDS = ("name", "max_running", "priority", "admin")


class Key(NamedTuple):
    """``digest`` is the SHA-256 of the secret, ``tenant`` whoever shares the key's name, which somebody has ``named``
    or the digest has; ``admin`` opens the routes that change the server. ``peer`` is who asks by it, where the parent
    of several models, which passes the request on, has told that."""

    digest: bytes
    tenant: Tenant
    admin: bool = False
    named: bool = False
    peer: str = ""


class KeyRing(Protocol):
    """Whose a request is, and what they may do. Those fields of a body are ``read_in_front`` that another process has
    read which passes requests on."""

    read_in_front: frozenset[str]

    def authenticate(self, headers: Mapping[bytes, bytes]) -> Key | None:
        """Whose request it is by its headers; None where nobody needs a key. Raises InvalidKey."""

    def tenant(self, key: Key | None) -> Tenant:
        """Whose ``key`` is by now. Raises InvalidKey."""

    def require_admin(self, key: Key | None) -> None:
        """Raises PermissionDenied."""


class Keys:
    """The keys of a file, one a line, and of the environment's ``LLAMAFAST_API_KEY``.

    A line is a secret of printable ASCII characters, or ``sha256:`` and the hexadecimal digest of one, then any of
    ``name=alice``, ``max_running=4``, ``priority=5`` and ``admin``; ``#`` begins a comment line. Without a name the
    key's own digest names its tenant. Several keys of one name are one tenant, so that a key can be replaced while both
    work; what they allow but for ``admin`` is the same. Of the environment's key counts what the file says, if it does.
    With ``salted`` no tenant is given what another one's prompts have left in the prefix cache. A key without a name
    that is the only one is nobody's in particular, a router's for one: it has the part of requests without a key, and
    keeps to its own once there are others.

    Raises ConfigError for a file that cannot be read, holds no key or has a line that is none of this.
    """

    read_in_front: frozenset[str] = frozenset()

    def __init__(self, path: Path | None = None, variable: str = "", *, salted: bool = True) -> None:
        self._path = path
        self._salted = salted
        self._of_variable = _of_variable(variable)
        self._reading = threading.Lock()
        self._known: dict[bytes, Key] = {}
        self.load()

    separate = False  # whether each tenant has a part of the prefix cache of its own

    @property
    def required(self) -> bool:
        """Whether a request needs a key."""
        return self._path is not None or bool(self._of_variable)

    @property
    def have_file(self) -> bool:
        return self._path is not None

    def load(self) -> None:
        """Read the file, if there is one. Raises ConfigError, and the keys that were known stay."""
        # of two readings at once the later one has the last word
        with self._reading:
            keys = [] if self._path is None else list(_read(self._path, self._of_variable))
            known = {key.digest: key for key in (*self._of_variable, *keys)}
            self.separate = self._salted and (len(known) > 1 or any(key.named for key in known.values()))
            self._known = {digest: _apart(key) if self.separate else key for digest, key in known.items()}

    def reload(self) -> None:
        """The same while serving, from any thread: a file at fault is logged."""
        try:
            self.load()
        except ConfigError as error:
            log.error("keys     not read again: %s", error)
        else:
            log.info("keys     %d after reading %s again", len(self._known), self._path)

    def find(self, secret: bytes) -> Key | None:
        """Whose secret it is, None: nobody's. What is compared is a digest of all of it, in constant time where one is
        known, so that how long it takes tells nothing of how much of a secret was right."""
        digest = _digest(secret)
        key = self._known.get(digest)
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None

    def tenant(self, key: Key | None) -> Tenant:
        """Whose ``key`` is by now: connections outlive a reading of the file. Raises InvalidKey when it was taken away
        or given to somebody else."""
        if key is None:
            return ANYBODY
        now = self._known.get(key.digest)
        if now is None or now.tenant.name != key.tenant.name:
            raise InvalidKey("this key is not valid any more", code="invalid_api_key")
        return now.tenant

    def authenticate(self, headers: Mapping[bytes, bytes]) -> Key | None:
        """Whose request it is by ``Authorization: Bearer`` or ``x-api-key``; None where nobody needs a key. Raises
        InvalidKey."""
        if not self.required:
            return None
        secrets = list(_secrets(headers))
        for secret in secrets:
            if key := self.find(secret):
                return key
        if not secrets:
            raise InvalidKey("no API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`")
        raise InvalidKey("incorrect API key", code="invalid_api_key")

    def require_admin(self, key: Key | None) -> None:
        """Raises PermissionDenied."""
        if key is None or not key.admin:
            raise PermissionDenied("this needs a key that is marked `admin` in the file `server.api_key_file`")


def keys_of(config: ServerConfig) -> Keys:
    """Those of the config's file and of this process's environment. Raises ConfigError."""
    path = None if config.api_key_file is None else Path(config.api_key_file)
    return Keys(path, os.environ.get(KEY_VARIABLE, ""), salted=config.salt_by_key)


def _apart(key: Key) -> Key:
    return key._replace(tenant=replace(key.tenant, salt=key.tenant.name))


def _secrets(headers: Mapping[bytes, bytes]) -> Iterator[bytes]:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and (token := token.strip()):
        yield token
    if token := headers.get(b"x-api-key", b""):
        yield token


def _digest(secret: bytes) -> bytes:
    return sha256(secret[: MAX_SECRET_BYTES + 1]).digest()


def _of_variable(secret: str) -> list[Key]:
    """Raises ConfigError."""
    secret = secret.strip()
    if not secret:
        return []
    try:
        return [Key(_digest_in(secret), Tenant(name=VARIABLE_NAME))]
    except ValueError as error:
        raise ConfigError(f"{KEY_VARIABLE}: {error}") from error


def _digest_in(word: str) -> bytes:
    """The digest of a secret, or the one that is there in its place. Raises ValueError, whose text never has it."""
    if word.startswith("sha256:"):
        if (hashed := _HASHED.fullmatch(word)) is None:
            raise ValueError("behind `sha256:` there have to be 64 hexadecimal digits")
        return bytes.fromhex(hashed[1])
    if len(word) > MAX_SECRET_BYTES or not _SECRET.fullmatch(word):
        raise ValueError(f"a key has 1 to {MAX_SECRET_BYTES} printable ASCII characters and no blank")
    return _digest(word.encode())


def _read(path: Path, beside: Iterable[Key]) -> Iterator[Key]:
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                log.warning("keys     %s can be read by others than its owner: chmod 600", path)
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"server.api_key_file: {path.absolute()}: {reason}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"server.api_key_file: {path} has more than {MAX_FILE_BYTES} bytes")
    lines: dict[bytes, int] = {}
    tenants = {key.tenant.name: key.tenant for key in beside}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            try:
                key = _key(words[0], words[1:])
                if (first := lines.setdefault(key.digest, number)) != number:
                    raise ValueError(f"the key of line {first} again")
                if tenants.setdefault(key.tenant.name, key.tenant) != key.tenant:
                    raise ValueError("keys of one name have the same max_running and priority")
            except ValueError as error:
                raise ConfigError(f"server.api_key_file: line {number} of {path}: {error}") from error
            yield key
    if not lines:
        raise ConfigError(f"server.api_key_file: {path} holds no key")


def _key(secret: str, words: list[str]) -> Key:
    """Raises ValueError, whose text never has the secret."""
    digest = _digest_in(secret)
    fields: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in fields or name not in _FIELDS or (name == "admin") == ("=" in word):
            raise ValueError("what follows a key is name=…, max_running=…, priority=… or admin, each once")
        fields[name] = value
    name = fields.get("name", f"key-{digest.hex()[:16]}")
    if not _NAME.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits and characters of `._@-`")
    tenant = Tenant(
        name=name,
        max_running=_number(fields, "max_running", 1),
        priority=_number(fields, "priority", -(2**31)) or 0,
    )
    return Key(digest, tenant, "admin" in fields, "name" in fields)


def _number(fields: Mapping[str, str], name: str, least: int) -> int | None:
    if name not in fields:
        return None
    value, most = fields[name], 2**31 - 1
    if not re.fullmatch(r"-?[0-9]{1,10}", value, re.ASCII) or not least <= int(value) <= most:
        raise ValueError(f"{name} is a number from {least} to {most}")
    return int(value)
