"""A folder for the sockets of children: this user's alone, and gone with its server."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from llamafast.errors import ConfigError

_PREFIX = "llamafast-pool-"
_LOCK = "lock"
# sun_path of the system that has least, macOS, with its closing NUL
_LONGEST = 103


class PrivateFolder:
    """Beside it those go that servers have left behind that were killed: the lock in a folder is held for as long as
    its server lives. Raises ConfigError."""

    def __init__(self) -> None:
        try:
            _sweep(Path(tempfile.gettempdir()))
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise ConfigError(f"there is no place for sockets in {tempfile.gettempdir()}: {error}") from error
        self._n = 0

    def socket(self) -> Path:
        """A path that no socket has had. Raises ConfigError where a socket's path may not be so long."""
        self._n += 1
        path = self.path / str(self._n)
        if len(os.fsencode(path)) > _LONGEST:
            self.close()
            raise ConfigError(f"TMPDIR: {self.path} is too long for the path of a socket")
        return path

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        self.remove()
        os.close(self._lock)


def _sweep(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        # others' and those that are being made are left alone
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
