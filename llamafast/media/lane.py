"""Media that wait for a thread of the process that looks at them."""

from __future__ import annotations

import os
import threading
from typing import Self

from llamafast.media.anonymous_file import mapped
from llamafast.media.wire import LayOut


class MediumFile:
    """The bytes of a medium, and the file that has them, which the context closes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.data = memoryview(b"")

    def __enter__(self) -> Self:
        """Not before its turn: there is room for a few only."""
        self.data = mapped(self.descriptor)
        return self

    def __exit__(self, *_: object) -> None:
        self.data = memoryview(b"")
        os.close(self.descriptor)

    @property
    def name(self) -> tuple[int, int]:
        """Its own as long as it is open or mapped anywhere."""
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino


class Lane:
    """Media for one thread, which takes them in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[LayOut, MediumFile]] = {}
        self._came = threading.Condition()

    def put(self, message: LayOut, file: MediumFile) -> None:
        with self._came:
            self._waiting[message.job] = message, file
            self._came.notify()

    def get(self) -> tuple[LayOut, MediumFile]:
        """The first one, once there is any."""
        with self._came:
            while not self._waiting:
                self._came.wait()
            return self._waiting.pop(next(iter(self._waiting)))

    def drop(self, job: int) -> bool:
        """Whether it was waiting still, and never will be looked at now."""
        with self._came:
            found = self._waiting.pop(job, None)
        if found is None:
            return False
        os.close(found[1].descriptor)
        return True
