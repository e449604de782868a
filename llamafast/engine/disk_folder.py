"""The folder of the disk tier: whether it is fit for what prompts leave behind, and whose namespace is whose."""

from __future__ import annotations

import errno
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import msgspec

from llamafast.engine import namespaces
from llamafast.engine.disk_entry import FORMAT, file_name, unfinished_name
from llamafast.engine.files import Files
from llamafast.errors import ConfigError

logger = logging.getLogger(__name__)


class DiskFolder:
    """A namespace in ``path``, named after ``fingerprint``: all that the meaning of a state depends on.

    ``locked``: this process writes there, and no other. Raises ConfigError where the folder cannot be made or used.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, object], files: Files | None = None) -> None:
        self.files = files or Files()
        check_folder(path, self.files)
        self._path = path
        about = msgspec.json.encode({"format": FORMAT, **fingerprint}, order="sorted")
        self.name = namespaces.name_of(about)
        self.namespace = path / self.name
        self._about = about
        self._lock: int | None = None
        self._closed = False
        self._secret = self._read_secret() or secrets.token_bytes(32)
        try:
            if not self.take():
                logger.warning("disk     another process writes %s; this one only reads", self.namespace)
        except OSError as error:
            logger.warning("disk     %s cannot be written: %s", self.namespace, error)

    @property
    def locked(self) -> bool:
        return self._lock is not None

    def restore(self) -> None:
        """Make the namespace again where it was deleted, and take its lock where that is lost. Raises OSError."""
        try:
            self.files.status(self.namespace)
        except FileNotFoundError:
            self._unlock()
        if not self.take():
            raise OSError(errno.EAGAIN, "another process writes it")

    def take(self) -> bool:
        """Whether this process writes there from now on. Raises OSError, or ConfigError where others can."""
        if self._lock is not None or self._closed:
            return self._lock is not None
        self.files.make_folder(self.namespace)
        namespaces.refuse_strangers(self.namespace, self.files)
        lock = self.files.lock(self.namespace / namespaces.LOCK)
        if lock is None:
            return False
        try:
            self._agree_on_secret()
        except BaseException:
            self.files.close(lock)
            raise
        self._lock = lock
        if self._closed:  # meanwhile
            self._unlock()
        return self._lock is not None

    def close(self) -> None:
        """Let others write there."""
        self._closed = True
        self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            self.files.close(lock)

    def path(self, id: str) -> Path:
        """Of an entry."""
        return self.namespace / file_name(id)

    def unlink(self, name: str) -> bool:
        """Whether a file of the namespace is gone."""
        try:
            self.files.unlink(self.namespace / name)
        except OSError as error:
            logger.warning("disk     cannot delete %s: %s", name, error)
            return False
        return True

    def root(self, salt: bytes) -> bytes:
        """What stands for a salt on the disk; it may be a secret of a client's, so it is not told there."""
        return blake2b(salt, key=self._secret, digest_size=32).digest() if salt else b""

    def others(self) -> list[Path]:
        """Folders of other namespaces."""
        found = namespaces.namespaces(self._path, self.files)
        return [one for one in found if one.name != self.name and namespaces.is_ours(one, self.files)]

    def set_aside(self) -> Path:
        """Give the namespace another name, for ``restore`` to begin an empty one; where it is now. Raises OSError."""
        place = self._path / f"{self.name}.bad"
        with suppress(FileNotFoundError):
            self.files.status(place)
            namespaces.remove(place, self.files)
        self.files.rename(self.namespace, place)
        return place

    def _read_secret(self) -> bytes | None:
        """That of the entries there are, None where they have none that can be read: those of salts are lost then."""
        try:
            fd = self.files.open(self.namespace / namespaces.ABOUT)
            try:
                told = msgspec.json.decode(self.files.read(fd, namespaces.MAX_ABOUT, 0))
            finally:
                self.files.close(fd)
            secret = bytes.fromhex(told.pop("secret"))
            return secret if msgspec.json.encode(told, order="sorted") == self._about and len(secret) == 32 else None
        except (OSError, msgspec.DecodeError, AttributeError, KeyError, TypeError, ValueError):
            return None

    def _agree_on_secret(self) -> None:
        """It is that of the entries that there are, or told to those who will read them. Raises OSError."""
        if (told := self._read_secret()) is not None:
            self._secret = told
            return
        about = msgspec.json.decode(self._about) | {"secret": self._secret.hex()}
        aside = self.namespace / unfinished_name(secrets.token_hex(16))
        try:
            fd = self.files.create(aside)
            try:
                data, n = memoryview(msgspec.json.encode(about)), 0
                while n < len(data):
                    n += self.files.write(fd, data[n:], n)
                self.files.flush(fd)
            finally:
                self.files.close(fd)
            self.files.rename(aside, self.namespace / namespaces.ABOUT)
        except OSError:
            self.unlink(aside.name)
            raise


def check_folder(path: Path, files: Files | None = None) -> None:
    """Make it where it is not there. Raises ConfigError."""
    files = files or Files()
    try:
        with suppress(PermissionError):
            files.make_folder(path)
        namespaces.refuse_strangers(path, files)
    except OSError as error:
        raise ConfigError(f"disk_cache.path: {path.absolute()}: {error.strerror or error}") from error
