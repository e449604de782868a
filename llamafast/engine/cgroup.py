"""Limits that control groups set this process: its own group's and those of every group around it, versions 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

PROC = Path("/proc/self")

NO_LIMIT = 1 << 60
_OCTAL = re.compile(r"\\([0-7]{3})")


class _Files(NamedTuple):
    """What a controller's files are called."""

    limit: str
    used: str


_MEMORY = {1: _Files("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: _Files("memory.max", "memory.current")}


def memory_left(proc: Path = PROC) -> int | None:
    """Bytes that this process may still allocate by the narrowest of its limits; None without any."""
    left = []
    for folder, version in _groups("memory", proc):
        limit, used = (_number(folder / name) for name in _MEMORY[version])
        if limit is not None and used is not None and limit < NO_LIMIT:
            left.append(max(0, limit - used))
    return min(left, default=None)


def memory_limit(proc: Path = PROC) -> int | None:
    """The narrowest of this process's limits in bytes; None without any."""
    limits = [_number(folder / _MEMORY[version].limit) for folder, version in _groups("memory", proc)]
    return min((limit for limit in limits if limit is not None and limit < NO_LIMIT), default=None)


def cpu_quota(proc: Path = PROC) -> float | None:
    """CPUs that this process may use by the narrowest of its quotas; None without any."""
    quotas = []
    for folder, version in _groups("cpu", proc):
        if version == 2:
            words = _words(folder / "cpu.max")
        else:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and all(word.isdigit() for word in words):  # else "max", -1 or no file
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _groups(controller: str, proc: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the groups that this process is in, innermost first, and their version."""
    own = _own(controller, proc)
    for line in _lines(proc / "mountinfo"):
        fields, _, after = line.partition(" - ")
        try:
            _, _, _, root, mounted_at, *_ = fields.split(" ")
            kind, _, options = after.split(" ")[:3]
        except ValueError:
            continue  # of no group
        version = {"cgroup": 1, "cgroup2": 2}.get(kind, 0)
        if version not in own or (version == 1 and controller not in options.split(",")):
            continue
        top, path = Path(_plain(mounted_at)), PurePosixPath(own[version])
        # a container sees the part of the tree below its root, and may be told a path of the host's
        inner = path.relative_to(_plain(root)) if path.is_relative_to(_plain(root)) else PurePosixPath()
        folder = top / inner
        if ".." in inner.parts or not _is_folder(folder):
            folder = top
        while True:
            yield folder, version
            if folder == top:
                break
            folder = folder.parent


def _own(controller: str, proc: Path) -> dict[int, str]:
    """The path of this process's group in each version's tree."""
    paths = {}
    for line in _lines(proc / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    return paths


def _plain(path: str) -> str:
    """A path of mountinfo, which writes blanks as octal numbers."""
    return _OCTAL.sub(lambda digits: chr(int(digits[1], 8)), path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # not ours to see
        return False


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel's, whose names are bytes; none where it cannot be read."""
    try:
        return [line for line in path.read_bytes().decode(errors="surrogateescape").split("\n") if line]
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(path: Path) -> int | None:
    """A file's number; None for "max" or no file."""
    text = "".join(_words(path))
    return int(text) if text.isdigit() else None
