"""Bytes that two processes share: in a file without a name, of which only descriptors are known."""

from __future__ import annotations

import mmap
import os
import tempfile


class AnonymousFile:
    """Holds bytes as long as somebody holds it."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("llamafast", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        os.ftruncate(self.descriptor, n_bytes)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> AnonymousFile:
        """One that holds ``data``."""
        self = cls(len(data))
        left = memoryview(data)
        while left:
            left = left[os.write(self.descriptor, left) :]
        return self

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def mapped(descriptor: int, *, writable: bool = False) -> memoryview:
    """The bytes of a file, as long as somebody holds these; the descriptor may be closed."""
    n_bytes = os.fstat(descriptor).st_size
    if not n_bytes:
        return memoryview(b"")
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return memoryview(mmap.mmap(descriptor, n_bytes, access=access))
