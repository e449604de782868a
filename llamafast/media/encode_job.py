"""What is to be encoded, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable

from llamafast.engine.media import MediaKind
from llamafast.errors import LlamafastError
from llamafast.media.anonymous_file import AnonymousFile


class EncodeJob:
    """One medium to be encoded. ``on_rows`` and ``on_end`` are called in the process's reader's thread."""

    def __init__(
        self,
        file: AnonymousFile,
        kind: MediaKind,
        low_detail: bool,
        on_rows: Callable[[int, memoryview], None],
        on_end: Callable[[LlamafastError | None], None],
        there: tuple[int, ...] = (),
    ) -> None:
        self.file, self.kind, self.low_detail = file, kind, low_detail
        self.on_rows, self.on_end = on_rows, on_end
        self.there = there
        self.again = False  # it outlived a process that may have died of something else
