"""Namespaces of the disk tier in a folder: which there are, what they take, and how one goes that nobody writes."""

from __future__ import annotations

import logging
import os
import re
import stat
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from llamafast.engine.disk_entry import NAME, UNFINISHED
from llamafast.engine.files import Files, passes
from llamafast.errors import ConfigError

logger = logging.getLogger(__name__)

ABOUT, LOCK = "namespace.json", "lock"
MAX_ABOUT = 2**20
_NAMESPACE = re.compile(r"[0-9a-f]{16}(\.bad)?")


def is_name(name: str) -> bool:
    """Whether a namespace may be called that."""
    return _NAMESPACE.fullmatch(name) is not None


def namespaces(path: Path, files: Files) -> list[Path]:
    """The folders in ``path`` that have the name of one. Raises OSError."""
    places = []
    for one in files.scan(path):
        if is_name(one.name):
            with suppress(OSError):  # it may go meanwhile
                if stat.S_ISDIR(files.status(path / one.name).st_mode):
                    places.append(path / one.name)
    return places


def name_of(about: bytes) -> str:
    """Of the namespace that ``about`` tells of."""
    return sha256(about).hexdigest()[:16]


def is_ours(place: Path, files: Files) -> bool:
    """Whether a folder tells in it what its name was made of, as no other program's does."""
    try:
        fd = files.open(place / ABOUT)
        try:
            told = msgspec.json.decode(files.read(fd, MAX_ABOUT, 0))
        finally:
            files.close(fd)
        told.pop("secret")
        return name_of(msgspec.json.encode(told, order="sorted")) == place.name.removesuffix(".bad")
    except (OSError, msgspec.DecodeError, AttributeError, KeyError, TypeError):
        return False


def is_held(place: Path, files: Files) -> bool:
    """Whether another process writes a namespace, or nobody can tell."""
    try:
        lock = files.lock(place / LOCK)
    except OSError:
        return True
    if lock is not None:
        files.close(lock)
    return lock is None


def weighed(place: Path, files: Files) -> tuple[float, int]:
    """When a namespace was last used, in seconds since 1970, and its bytes; nothing where it is not to be looked at.
    Raises OSError where it may be later."""
    try:
        found = list(files.scan(place))
    except OSError as error:
        if passes(error):
            raise
        return 0.0, 0
    return max((one.used_at for one in found), default=0.0), sum(one.n_bytes for one in found)


def remove(place: Path, files: Files) -> bool:
    """Delete a namespace, of which only what has the names of ours goes; False while somebody writes there, or
    something keeps it."""
    try:
        lock = files.lock(place / LOCK)
        if lock is None:
            return False
        try:
            found = list(files.scan(place))
            # who comes meanwhile finds the lock held, and the secret of what is there
            for one in sorted(found, key=lambda one: (one.name == LOCK, one.name == ABOUT)):
                if one.name in (ABOUT, LOCK) or NAME.fullmatch(one.name) or UNFINISHED.fullmatch(one.name):
                    files.unlink(place / one.name)
        finally:
            files.close(lock)
        files.remove_folder(place)
    except OSError as error:
        logger.warning("disk     cannot delete %s: %s", place, error)
        return False
    return True


def refuse_strangers(path: Path, files: Files) -> None:
    """What others can write they could plant: a state of their making in somebody's conversation. Raises ConfigError,
    or OSError."""
    status = files.status(path)
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"disk_cache.path: {path} is not a folder")
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"disk_cache.path: {path} is not this user's alone to write")
