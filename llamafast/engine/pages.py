"""Memory for what is read from the disk, used again."""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections import deque
from contextlib import suppress

# Sizes are multiples of this, so that those of parts of as many tokens are the same.
GRAIN = 2**18
# What is kept for the next ones, and how small it may be to be worth that.
KEPT_BYTES, LEAST_BYTES = 64 * 2**20, 2**20


class Pages:
    """Fresh pages, which nobody has touched: bytes would be cleared first, with the GIL.

    To unmap 12 MB takes the GIL for a millisecond, and on virtual machines that give free memory back for several; so
    pages that nobody holds any more are kept for others. Any thread.
    """

    def __init__(self) -> None:
        self._kept: deque[mmap.mmap] = deque()
        self._kept_bytes = 0
        self._lock = threading.RLock()  # a finalizer may come while it is held

    def take(self, n_bytes: int) -> memoryview:
        """So many bytes at least, at the beginning of a page; whatever they say. Raises OSError for want of memory."""
        size = -(-n_bytes // GRAIN) * GRAIN if n_bytes >= LEAST_BYTES else n_bytes
        pages = self._found(size) or _fresh(size)
        held = (ctypes.c_ubyte * size).from_buffer(pages)
        if size >= LEAST_BYTES:
            # once no view of them is held by anybody
            weakref.finalize(held, self._keep, pages).atexit = False
        return memoryview(held).cast("B")

    def _found(self, size: int) -> mmap.mmap | None:
        with self._lock:
            for pages in list(self._kept):
                if len(pages) == size:
                    self._kept.remove(pages)
                    self._kept_bytes -= size
                    return pages
        return None

    def _keep(self, pages: mmap.mmap) -> None:
        dropped = []
        with self._lock:
            self._kept.append(pages)
            self._kept_bytes += len(pages)
            while self._kept_bytes > KEPT_BYTES:
                dropped.append(self._kept.popleft())
                self._kept_bytes -= len(dropped[-1])


def _fresh(size: int) -> mmap.mmap:
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # where the kernel has none
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
