"""An operating system that fails the disk tier on demand, in every way that a real one does."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamafast.engine.files import Files


class Gate:
    """Whoever comes to it has ``reached`` it and stays until it is ``opened``."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(60), "nobody opened the gate"


class FaultyFiles(Files):
    """Files that work until they are told not to.

    ``failing``: an errno by the name of the method that raises it. ``room``: so many bytes may still be written, the
    rest of which there is no room for; None: any number. ``at_most``: so many bytes go through one read or write.
    ``flips``: what is read has a wrong bit. ``vanishing``: what is opened for reading is gone. ``gates``: what a call
    of a method waits at, by name. ``calls``: names and paths of what was asked for.
    """

    def __init__(self) -> None:
        self.gates: dict[str, Gate] = {}
        self.calls: list[tuple[str, str]] = []
        self.heal()

    def heal(self) -> None:
        """Fail in nothing any more."""
        self.failing: dict[str, int] = {}
        self.room: int | None = None
        self.at_most: int | None = None
        self.flips = False
        self.vanishing = False

    @contextmanager
    def gate(self, name: str) -> Iterator[Gate]:
        """Hold the next calls of a method up, until the gate is opened or the block is left."""
        gate = self.gates[name] = Gate()
        try:
            yield gate
        finally:
            del self.gates[name]
            gate.opened.set()

    def _meet(self, name: str, path: Path | None = None) -> None:
        self.calls.append((name, "" if path is None else path.name))
        if (gate := self.gates.get(name)) is not None:
            gate.pass_through()
        if name in self.failing:
            raise OSError(self.failing[name], os.strerror(self.failing[name]))

    def make_folder(self, path: Path) -> None:
        self._meet("make_folder", path)
        super().make_folder(path)

    def status(self, path: Path) -> os.stat_result:
        self._meet("status", path)
        return super().status(path)

    def create(self, path: Path) -> int:
        self._meet("create", path)
        return super().create(path)

    def open(self, path: Path, *, direct: bool = False) -> int:
        self._meet("open", path)
        if self.vanishing:
            super().unlink(path)
        return super().open(path, direct=direct)

    def size(self, fd: int) -> int:
        self._meet("size")
        return super().size(fd)

    def read(self, fd: int, n_bytes: int, at: int) -> bytes:
        self._meet("read")
        data = super().read(fd, n_bytes if self.at_most is None else min(n_bytes, self.at_most), at)
        if not self.flips or not data:
            return data
        wrong = bytearray(data)
        wrong[len(wrong) // 2] ^= 1
        return bytes(wrong)

    def read_into(self, fd: int, buffer: memoryview, at: int) -> int:
        data = self.read(fd, len(buffer), at)
        buffer[: len(data)] = data
        return len(data)

    def write(self, fd: int, data: memoryview, at: int) -> int:
        self._meet("write")
        n_bytes = len(data) if self.at_most is None else min(len(data), self.at_most)
        if self.room is not None:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            n_bytes = min(n_bytes, self.room)
            self.room -= n_bytes
        return super().write(fd, data[:n_bytes], at)

    def flush(self, fd: int) -> None:
        self._meet("flush")
        super().flush(fd)

    def rename(self, path: Path, to: Path) -> None:
        self._meet("rename", to)
        super().rename(path, to)

    def unlink(self, path: Path) -> None:
        self._meet("unlink", path)
        super().unlink(path)

    def remove_folder(self, path: Path) -> None:
        self._meet("remove_folder", path)
        super().remove_folder(path)

    def touch(self, path: Path) -> None:
        self._meet("touch", path)
        super().touch(path)

    def scan(self, path: Path) -> Iterator:
        self._meet("scan", path)
        return super().scan(path)

    def free_bytes(self, path: Path) -> int:
        self._meet("free_bytes", path)
        return super().free_bytes(path)

    def lock(self, path: Path) -> int | None:
        self._meet("lock", path)
        return super().lock(path)
