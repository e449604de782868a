"""What other threads want of the engine thread, and how it sleeps until somebody does."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llamafast._core.sequence import Sequence
from llamafast.engine.encoder_turns import EncoderTurns
from llamafast.engine.scheduler import Arrival


class Orders:
    """``arrive``, ``cancel``, ``do``, ``wake``, ``close`` and ``any`` are for any thread, the others for the
    engine's. ``interrupt`` makes its steps end; a turn of the encoder ends too."""

    def __init__(self, interrupt: Callable[[], None], turns: EncoderTurns | None = None) -> None:
        self.arrived: list[Arrival[Sequence]] = []
        self.cancelled: list[int] = []
        self.calls: list[Callable[[], object]] = []
        self.closing = False
        # since the last orders were taken, and before
        self.woken = self.was_woken = False
        self._interrupt = interrupt
        self._turns = turns
        self._condition = threading.Condition()

    @property
    def any(self) -> bool:
        return bool(self.arrived or self.cancelled or self.calls)

    def arrive(self, arrival: Arrival[Sequence]) -> None:
        """Before a ``wake``."""
        with self._condition:
            self.arrived.append(arrival)

    def cancel(self, tags: list[int]) -> None:
        """Before a ``wake``."""
        with self._condition:
            self.cancelled.extend(tags)

    def do(self, call: Callable[[], object]) -> None:
        """Before a ``wake``."""
        with self._condition:
            self.calls.append(call)

    def wake(self) -> None:
        with self._condition:
            self.woken = True
            self._condition.notify()
            self._interrupt()
            if self._turns is not None:
                self._turns.wake()

    def close(self) -> None:
        with self._condition:
            self.closing = True
            self._condition.notify()
            self._interrupt()

    def wait(self, has_work: Callable[[], bool], patience: Callable[[], float | None]) -> None:
        """Sleep until there are orders, ``has_work``, or for as long as ``patience`` says (None: for good)."""
        with self._condition:
            while not (self.any or self.closing or has_work()):
                if not self._condition.wait(patience()):
                    return

    def take(self) -> tuple[list[Arrival[Sequence]], set[int], list[Callable[[], object]]]:
        """Those who have arrived, the tags of those who are cancelled, and what is to be called once these are."""
        with self._condition:
            arrived, self.arrived = self.arrived, []
            cancelled, self.cancelled = self.cancelled, []
            calls, self.calls = self.calls, []
            self.was_woken, self.woken = self.woken, False
            if self._turns is not None:
                self._turns.begin()
        return arrived, set(cancelled), calls

    def rest(self, seconds: float) -> None:
        """Sleep for so long, or until somebody wants something."""
        with self._condition:
            if not (self.any or self.closing):
                self._condition.wait(seconds)
