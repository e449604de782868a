"""The Masker's threads, one for usual grammars and one for slow ones: when they start, with what priority."""

from __future__ import annotations

import os
import sys
import threading

from llamafast._core.masks import Masker

SLOW_NICENESS = 10


class MaskerThreads:
    """One for usual grammars and one, of lower priority, for slow ones. They start with the first request that has a
    grammar, on the CPUs that the caller is confined to by then."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Once; later calls change nothing."""
        if self._threads:
            return
        for slow in (False, True):
            thread = threading.Thread(target=self._run, args=(slow,), name="llamafast-masker", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Returns when they have ended."""
        self._masker.close()
        for thread in self._threads:
            thread.join()

    def _run(self, slow: bool) -> None:
        """What slow grammars take is not to keep the event loop waiting."""
        if slow and sys.platform == "linux":  # elsewhere priorities are those of processes
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SLOW_NICENESS)
        self._masker.run(slow=slow)
