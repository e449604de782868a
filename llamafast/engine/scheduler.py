"""Who runs, who waits, who gives way. Decisions only: nothing here touches a model."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Schedulable(Protocol):
    """What the scheduler looks at in a Sequence: lengths in tokens."""

    @property
    def n_tokens(self) -> int:
        """Prompt and output so far."""
        ...

    @property
    def n_max(self) -> int:
        """What n_tokens can reach."""
        ...


S = TypeVar("S", bound=Schedulable)


class Scheduler(Generic[S]):
    """First come, first served, as long as sequence ids and cells last.

    ``n_cells`` is None where every sequence has cells of its own. A running sequence has reserved its tokens so far and
    the next ``LOOKAHEAD`` it may generate: most stop long before their limit, and where the bet is lost the youngest
    gives way (``preempt``) and is admitted again before everybody who has not run yet. With nobody else running the
    oldest always fits, because a sequence never has more tokens than there are cells.
    """

    LOOKAHEAD = 256

    def __init__(self, *, n_seq_max: int, n_cells: int | None) -> None:
        self.n_seq_max = n_seq_max
        self.n_cells = n_cells
        self.waiting: deque[S] = deque()
        self.running: list[S] = []

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def enqueue(self, sequence: S) -> None:
        self.waiting.append(sequence)

    def admit(self) -> list[S]:
        """Move from waiting to running whoever fits now, in order; the ones that were moved."""
        admitted: list[S] = []
        reserved = sum(map(self._reservation, self.running))
        while self.waiting and len(self.running) < self.n_seq_max:
            need = self._reservation(self.waiting[0])
            if self.n_cells is not None and self.running and reserved + need > self.n_cells:
                break
            reserved += need
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def preempt(self) -> S | None:
        """Send the youngest running sequence back to the head of the queue; None when at most one runs."""
        if len(self.running) < 2:
            return None
        sequence = self.running.pop()
        self.waiting.appendleft(sequence)
        return sequence

    def remove(self, sequence: S) -> bool:
        """Forget a sequence that finished, failed or was cancelled; True if it was running."""
        if sequence in self.running:
            self.running.remove(sequence)
            return True
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        return False

    def take_running(self) -> list[S]:
        """Forget everybody who runs; who that was."""
        running, self.running = self.running, []
        return running

    def _reservation(self, sequence: S) -> int:
        return min(sequence.n_max, sequence.n_tokens + self.LOOKAHEAD)
