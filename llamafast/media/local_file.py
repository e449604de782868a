"""Media in files of the server's, below the one folder that its config names."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import SplitResult, unquote

from llamafast.errors import InvalidMedia
from llamafast.media.limits import ByteLimit, FetchedItem

_REFUSAL = "the file cannot be read, or is not in model.mtmd.allowed_local_media_path"


def read_local_file(url: SplitResult, folder: Path | None, limit: ByteLimit, item: FetchedItem) -> bytes:
    """The file of a ``file:`` URL. Blocks. Raises InvalidMedia, with one sentence whether a file is missing, no regular
    one or somewhere else; or QueueFull."""
    if folder is None:
        raise InvalidMedia("file: URLs need model.mtmd.allowed_local_media_path")
    if url.netloc.lower() not in {"", "localhost"}:
        raise InvalidMedia("file: URLs name files of this server: `file:///folder/picture.png`")
    try:
        # what was opened is what is looked at, and a pipe that nobody writes to holds nobody up
        fd = os.open(unquote(url.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError):
        raise InvalidMedia(_REFUSAL) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _path_of(fd).is_relative_to(folder.resolve()):
            raise InvalidMedia(_REFUSAL)
        limit.check(status.st_size)
        item.grow(status.st_size)
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(status.st_size + 1)
    except OSError:
        raise InvalidMedia(_REFUSAL) from None
    finally:
        os.close(fd)
    if len(data) > status.st_size:
        raise InvalidMedia("the file grows while it is read")
    return data


def _path_of(fd: int) -> Path:
    """Where an open file is, symbolic links followed."""
    if os.path.exists("/proc/self/fd"):
        return Path(os.readlink(f"/proc/self/fd/{fd}"))
    import fcntl

    # F_GETPATH of macOS; MAXPATHLEN is 1,024
    return Path(os.fsdecode(fcntl.fcntl(fd, 50, bytes(1024)).rstrip(b"\0")))
