"""Rows of media in a folder, a file for each chunk, within a number of bytes: what outlives the server.

Any number of servers may share a folder: files are written aside and renamed, and what one has evicted is a miss for
the others. Whatever is not as it was written is a miss too, and goes.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from struct import Struct as Packing

import xxhash

logger = logging.getLogger(__name__)

_SUFFIX, _ASIDE = ".rows", ".new"
# in the place of a chunk's number
LAYOUT = 1 << 63
# a magic, how many bytes follow, and XXH3-64 of them
_HEAD = Packing("<8sQQ")
_MAGIC = b"lfrows1\0"


class RowFiles:
    """At most ``max_bytes`` of files, those that were not wanted for longest go first; with 0 nothing is written or
    evicted, and what is there is read. Blocks; any thread.

    Raises OSError where the folder cannot be made or read.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.counts = {"media_hits_disk": 0, "media_disk_writes": 0, "media_disk_failures": 0}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = []
        for entry in os.scandir(folder):
            if entry.name.endswith(_SUFFIX) and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                found.append((status.st_mtime_ns, entry.name, status.st_size))
            elif entry.name.endswith(_ASIDE):
                # of a server that has ended meanwhile, or one that is about to rename it: that is a failure of its own
                with suppress(OSError):
                    os.unlink(entry.path)
        self._sizes = OrderedDict((name, size) for _, name, size in sorted(found))
        self._used_bytes = sum(self._sizes.values())
        self._evict()

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def read(self, salt: bytes, digest: bytes, chunk: int, n_bytes: int | None = None) -> memoryview | None:
        """What was written by this key, so many bytes; None where that is not there as it was written."""
        name = _name(salt, digest, chunk)
        path = self._folder / name
        with self._lock:
            known = name in self._sizes
        try:
            data = _regular(path)
        except FileNotFoundError:
            data = None
        except OSError as error:
            self._failed("read", path, error)
            data = None
        kept = None if data is None else _checked(data, n_bytes)
        if kept is None:
            if known or data is not None:
                self._drop(name)
            return None
        with suppress(OSError):
            os.utime(path)
        with self._lock:
            self._count(name, len(data or b""))
            self.counts["media_hits_disk"] += chunk != LAYOUT
        return kept

    def write(self, salt: bytes, digest: bytes, chunk: int, data: memoryview[float] | bytes) -> None:
        """Keep the rows of a chunk, or how a medium stands in a prompt (LAYOUT), where there is room for it at all."""
        payload = memoryview(data).cast("B")
        n_bytes = _HEAD.size + len(payload)
        if n_bytes > self._max_bytes:
            return
        name = _name(salt, digest, chunk)
        path = self._folder / name
        aside = path.with_name(f"{name}.{os.getpid()}.{threading.get_ident()}{_ASIDE}")
        try:
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(_HEAD.pack(_MAGIC, len(payload), xxhash.xxh3_64_intdigest(payload)))
                file.write(payload)
            os.replace(aside, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(aside)
            self._failed("write", path, error)
            return
        with self._lock:
            self._count(name, n_bytes)
            self.counts["media_disk_writes"] += chunk != LAYOUT
        self._evict()

    def _count(self, name: str, n_bytes: int) -> None:
        """With the lock: a file is there, and was wanted just now."""
        self._used_bytes += n_bytes - self._sizes.pop(name, 0)
        self._sizes[name] = n_bytes

    def _drop(self, name: str) -> None:
        with self._lock:
            self._used_bytes -= self._sizes.pop(name, 0)
        if self._max_bytes:
            with suppress(OSError):
                os.unlink(self._folder / name)

    def _evict(self) -> None:
        while self._max_bytes and self._used_bytes > self._max_bytes:
            with self._lock:
                oldest = next(iter(self._sizes), None)
            if oldest is None:
                return
            self._drop(oldest)

    def _failed(self, what: str, path: Path, error: OSError) -> None:
        self.counts["media_disk_failures"] += 1
        logger.warning("media    cannot %s %s: %s", what, path.name, error)


def _name(salt: bytes, digest: bytes, chunk: int) -> str:
    return sha256(len(salt).to_bytes(8, "little") + salt + digest + chunk.to_bytes(8, "little")).hexdigest() + _SUFFIX


def _regular(path: Path) -> bytes | None:
    """The bytes of a regular file, None for what is none: a link would lead out of the folder, a pipe would block."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read() if stat.S_ISREG(os.fstat(fd).st_mode) else None


def _checked(data: bytes, n_bytes: int | None) -> memoryview | None:
    if len(data) < _HEAD.size:
        return None
    magic, told, checksum = _HEAD.unpack_from(data)
    payload = memoryview(data)[_HEAD.size :]
    as_told = magic == _MAGIC and told == len(payload) and n_bytes in (None, told)
    return payload if as_told and checksum == xxhash.xxh3_64_intdigest(payload) else None
