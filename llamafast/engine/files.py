"""What the disk tier asks of the operating system."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

NICENESS = 19
BLOCK = 4096
# What is read or written in one call, about: the kernel lets nobody else onto that CPU meanwhile.
SLICE = 2**20
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ESTALE)


def in_blocks(n_bytes: int) -> int:
    """As many bytes as the blocks have that so many take."""
    return -(-n_bytes // BLOCK) * BLOCK


def give_way() -> None:
    """Whatever else runs goes before the calling thread."""
    if sys.platform == "linux":  # elsewhere priorities are those of processes
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def passes(error: OSError | MemoryError) -> bool:
    """Whether it says nothing of the file."""
    return isinstance(error, MemoryError) or error.errno in _PASSING


class Found(NamedTuple):
    """Something in a folder: what it takes there in bytes, and when it was last used, in seconds since 1970."""

    name: str
    is_file: bool
    n_bytes: int
    used_at: float


class Files:
    """Blocks; any thread. Everything may raise OSError. Links are not followed, and what it makes is its owner's alone.

    Tests put in its place what fails.
    """

    def make_folder(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def status(self, path: Path) -> os.stat_result:
        return os.stat(path, follow_symlinks=False)

    def create(self, path: Path) -> int:
        """A descriptor to write a file that is not there yet."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def open(self, path: Path, *, direct: bool = False) -> int:
        """A descriptor to read a file; nobody's pipe holds it up. With ``direct`` what is read goes past the page cache
        where there is such a way: by whole blocks, into whole pages, or the file system says EINVAL, here or there."""
        past = getattr(os, "O_DIRECT", 0) if direct else 0
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | past)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def read(self, fd: int, n_bytes: int, at: int) -> bytes:
        """Fewer where the file ends."""
        return os.pread(fd, n_bytes, at)

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        """How many bytes came; fewer than there is room for where the file ends."""
        return os.preadv(fd, [buffer], at)

    def write(self, fd: int, data: memoryview, at: int) -> int:
        """How many bytes of it were taken."""
        return os.pwrite(fd, data, at)

    def flush(self, fd: int) -> None:
        """Its bytes are on the disk, and take no memory any more."""
        if not hasattr(os, "fdatasync"):
            os.fsync(fd)
            return
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def rename(self, path: Path, to: Path) -> None:
        os.rename(path, to)

    def unlink(self, path: Path) -> None:
        """Also where it is gone already."""
        with suppress(FileNotFoundError):
            os.unlink(path)

    def remove_folder(self, path: Path) -> None:
        os.rmdir(path)

    def touch(self, path: Path) -> None:
        """It is used now."""
        os.utime(path, follow_symlinks=False)

    def scan(self, path: Path) -> Iterator[Found]:
        """All that is in a folder, but for what vanishes meanwhile."""
        with os.scandir(path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    # some file systems tell no blocks
                    n_bytes = max(512 * status.st_blocks, in_blocks(status.st_size))
                    yield Found(entry.name, entry.is_file(follow_symlinks=False), n_bytes, status.st_mtime)

    def free_bytes(self, path: Path) -> int:
        """What may still be written before a twentieth of the file system is all that is left."""
        status = os.statvfs(path)
        return status.f_frsize * (status.f_bavail - status.f_blocks // 20)

    def lock(self, path: Path) -> int | None:
        """A descriptor that holds a file's lock until it is closed; None where another process does, or did when it
        deleted the file."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(fd).st_nlink:
                raise BlockingIOError
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        return fd
