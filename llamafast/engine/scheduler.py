"""Who runs, who waits, who gives way. Decisions only: nothing here touches a model."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar


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


class Arrival(NamedTuple, Generic[S]):
    """Sequences of one request, by their index in it; requests are numbered as they come."""

    request: int
    choices: list[tuple[int, S]]
    priority: int = 0


@dataclass(eq=False, slots=True)
class Ticket(Generic[S]):
    """A sequence's place: lower priority values first, then in order of arrival, also after a preemption.

    ``request`` is its request's number; ``choice`` is which of its request's sequences this is. It ranks as if it had
    come so many requests later: one that asks for thousands of choices gives way to those who ask for a few,
    and nobody waits for ever.
    """

    sequence: S
    priority: int
    request: int
    choice: int
    passed: int = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        return self.priority, self.request + self.choice, self.request


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
        self._waiting_choices: Counter[int] = Counter()

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def n_waiting_requests(self) -> int:
        """Requests any of whose sequences wait."""
        return len(self._waiting_choices)

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

    def enqueue(self, arrival: Arrival[S]) -> None:
        for choice, sequence in arrival.choices:
            self._wait(Ticket(sequence, arrival.priority, arrival.request, choice))

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
        self._leave_queue(admitted)
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
        for ticket in self._running:
            if ticket.sequence is sequence:
                self._running.remove(ticket)
                return True
        self.remove_waiting(lambda waiting: waiting is sequence)
        return False

    def remove_waiting(self, unwanted: Callable[[S], bool]) -> int:
        """Forget all who wait and are ``unwanted``; how many that are."""
        return self._leave_queue([ticket for ticket in self._waiting if unwanted(ticket.sequence)])

    def take_running(self) -> list[S]:
        """Forget everybody who runs; who that was."""
        running, self._running = self.running, []
        return running

    def _wait(self, ticket: Ticket[S]) -> None:
        insort(self._waiting, ticket, key=lambda ticket: ticket.rank)
        self._waiting_choices[ticket.request] += 1

    def _leave_queue(self, leaving: list[Ticket[S]]) -> int:
        if leaving:
            self._waiting_choices -= Counter(ticket.request for ticket in leaving)
            left = set(leaving)
            self._waiting = [ticket for ticket in self._waiting if ticket not in left]
        return len(leaving)

    def _reservation(self, ticket: Ticket[S]) -> int:
        return min(ticket.sequence.n_max, ticket.sequence.n_tokens + self.LOOKAHEAD)
