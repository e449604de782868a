"""Who runs, who waits, who gives way. Decisions only: nothing here touches a model."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from itertools import count
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


@dataclass(eq=False, slots=True)
class Ticket(Generic[S]):
    """A sequence's place: lower priority values first, then in order of arrival, also after a preemption."""

    sequence: S
    priority: int
    arrival: int
    passed: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        return self.priority, self.arrival


class Scheduler(Generic[S]):
    """First come, first served within a priority, as long as sequence ids and cells last.

    ``n_cells`` is None where every sequence has cells of its own. A running sequence has reserved its tokens so far and
    the next ``LOOKAHEAD`` it may generate: most stop long before their limit, and where the bet is lost the last in
    rank gives way (``preempt``) and waits again at its old rank. With nobody else running the first always fits,
    because a sequence never has more tokens than there are cells.

    A sequence that fits may pass others for whom there is no room yet, but each of those at most ``MAX_PASSED`` times:
    after that nobody behind it is admitted before it.
    """

    LOOKAHEAD = 256
    MAX_PASSED = 16

    def __init__(self, *, n_seq_max: int, n_cells: int | None) -> None:
        self.n_seq_max = n_seq_max
        self.n_cells = n_cells
        self._waiting: list[Ticket[S]] = []
        self._running: list[Ticket[S]] = []
        self._arrivals = count()

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_reserved(self) -> int:
        """Cells that those who run have or are expected to need."""
        return sum(self._reservation(ticket) for ticket in list(self._running))

    @property
    def running(self) -> list[S]:
        return [ticket.sequence for ticket in self._running]

    @property
    def waiting(self) -> list[S]:
        return [ticket.sequence for ticket in self._waiting]

    def enqueue(self, sequence: S, priority: int = 0) -> None:
        self._wait(Ticket(sequence, priority, next(self._arrivals)))

    def admit(self) -> list[S]:
        """Move from waiting to running whoever may run now; the ones that were moved, in order."""
        admitted: list[Ticket[S]] = []
        blocked: list[Ticket[S]] = []
        reserved = self.n_reserved
        may_pass = True
        for ticket in self._waiting:
            if not may_pass or len(self._running) == self.n_seq_max:
                break
            need = self._reservation(ticket)
            if self.n_cells is None or not self._running or reserved + need <= self.n_cells:
                reserved += need
                self._running.append(ticket)
                admitted.append(ticket)
                for other in blocked:
                    other.passed += 1
                    may_pass = may_pass and other.passed < self.MAX_PASSED
            else:
                blocked.append(ticket)
                may_pass = ticket.passed < self.MAX_PASSED
        for ticket in admitted:
            self._waiting.remove(ticket)
        return [ticket.sequence for ticket in admitted]

    def preempt(self) -> S | None:
        """Send the last in rank of the running sequences back to wait; None when at most one runs."""
        if len(self._running) < 2:
            return None
        ticket = max(self._running, key=lambda ticket: ticket.rank)
        self._running.remove(ticket)
        self._wait(ticket)
        return ticket.sequence

    def remove(self, sequence: S) -> bool:
        """Forget a sequence that finished, failed or was cancelled; True if it was running."""
        for tickets in (self._running, self._waiting):
            for ticket in tickets:
                if ticket.sequence is sequence:
                    tickets.remove(ticket)
                    return tickets is self._running
        return False

    def take_running(self) -> list[S]:
        """Forget everybody who runs; who that was."""
        running, self._running = self.running, []
        return running

    def _wait(self, ticket: Ticket[S]) -> None:
        insort(self._waiting, ticket, key=lambda ticket: ticket.rank)

    def _reservation(self, ticket: Ticket[S]) -> int:
        return min(ticket.sequence.n_max, ticket.sequence.n_tokens + self.LOOKAHEAD)
