"""Who runs, who waits, who gives way (preemption). Decisions only: nothing here touches a model."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice, takewhile
from typing import Generic, NamedTuple, Protocol, TypeVar

from llamafast.engine.types import ANYBODY, Tenant


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

    @property
    def group(self) -> int:
        """Of adapters."""
        ...


S = TypeVar("S", bound=Schedulable)


class Arrival(NamedTuple, Generic[S]):
    """Sequences of one request, by their index in it; requests are numbered as they come.

    ``priority`` is the tenant's, then the request's own.
    """

    request: int
    choices: list[tuple[int, S]]
    priority: tuple[int, int] = (0, 0)
    tenant: Tenant = ANYBODY


@dataclass(eq=False, slots=True)
class Share(Generic[S]):
    """Those who share a bound: the sequences of one tenant, or of all who have none of their own.

    At most ``bound`` of them run at once. ``waiting`` is sorted by rank.
    """

    bound: int
    n_running: int = 0
    waiting: list[Ticket[S]] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        return self.n_running < self.bound


@dataclass(eq=False, slots=True)
class Ticket(Generic[S]):
    """A sequence's place: lower priority values first, then in order of arrival, also after a preemption.

    ``request`` is its request's number; ``choice`` is which of its request's sequences this is. It ranks as if it had
    come so many requests later: one that asks for thousands of choices gives way to those who ask for a few,
    and nobody waits for ever.
    """

    sequence: S
    priority: tuple[int, int]
    request: int
    choice: int
    share: Share[S]
    passed: int = 0

    @property
    def rank(self) -> tuple[tuple[int, int], int, int]:
        return self.priority, self.request + self.choice, self.request


class Scheduler(Generic[S]):
    """First come, first served within a priority, as long as sequence ids and cells last.

    ``n_cells`` is None where every sequence has cells of its own. A running sequence has reserved its tokens so far and
    the next ``LOOKAHEAD`` it may generate: most stop long before their limit, and where the bet is lost the last in
    rank gives way (``preempt``) and waits again at its old rank. With nobody else running the first always fits,
    because a sequence never has more tokens than there are cells.

    A sequence that fits may pass others for whom there is no room yet, but each of those at most ``MAX_PASSED`` times:
    after that nobody behind it is admitted before it.

    Sequences of a tenant that runs as many as it may wait as if they were not there: they keep their rank, pass nobody,
    are passed by nobody and hold nobody up.

    Of ``max_groups`` groups of adapters sequences run at once: others have no room.
    """

    LOOKAHEAD = 256
    MAX_PASSED = 16

    def __init__(self, *, n_seq_max: int, n_cells: int | None, max_groups: int = 1) -> None:
        self._max_groups = max_groups
        self.n_seq_max = n_seq_max
        self.n_cells = n_cells
        self._running: list[Ticket[S]] = []
        self._unbounded: Share[S] = Share(n_seq_max)
        self._bounded: dict[str, Share[S]] = {}  # by the tenant's name
        self._waiting_choices: Counter[int] = Counter()

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting_choices)

    @property
    def n_waiting(self) -> int:
        return sum(len(share.waiting) for share in self._shares())

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
        """By rank."""
        return self.next_waiting(None)

    def next_waiting(self, n: int | None) -> list[S]:
        """The first ``n`` of those who wait, by rank."""
        queues = [share.waiting for share in self._shares() if share.waiting]
        return [ticket.sequence for ticket in islice(merge(*queues, key=_rank), n)]

    def enqueue(self, arrival: Arrival[S]) -> None:
        """Let a request's sequences wait. A bound that its tenant has had before gives way to this request's, also for
        those who wait; sequences of a time when it had none keep none."""
        share = self._share_of(arrival.tenant)
        for choice, sequence in arrival.choices:
            self._wait(Ticket(sequence, arrival.priority, arrival.request, choice, share))

    def admit(self) -> list[S]:
        """Move from waiting to running whoever may run now; the ones that were moved, in order."""
        admitted: list[Ticket[S]] = []
        blocked: list[Ticket[S]] = []
        reserved = self.n_reserved
        groups = {ticket.sequence.group for ticket in self._running}
        may_pass = True
        for ticket in self._ready():
            if not may_pass or len(self._running) == self.n_seq_max:
                break
            need = self._reservation(ticket)
            has_cells = self.n_cells is None or not self._running or reserved + need <= self.n_cells
            if has_cells and len(groups | {ticket.sequence.group}) <= self._max_groups:
                groups.add(ticket.sequence.group)
                reserved += need
                self._running.append(ticket)
                ticket.share.n_running += 1
                admitted.append(ticket)
                for other in blocked:
                    # where this one was the last its tenant may run, the other waits for that bound from here on
                    other.passed += other.share.has_room or other.share is ticket.share
                    may_pass = may_pass and (other.passed < self.MAX_PASSED or not other.share.has_room)
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
        self._stop(ticket)
        self._wait(ticket)
        return ticket.sequence

    def remove(self, sequence: S) -> bool:
        """Forget a sequence that finished, failed or was cancelled; True if it was running."""
        for ticket in self._running:
            if ticket.sequence is sequence:
                self._stop(ticket)
                return True
        self.remove_waiting(lambda waiting: waiting is sequence)
        return False

    def remove_waiting(self, unwanted: Callable[[S], bool]) -> int:
        """Forget all who wait and are ``unwanted``; how many that are."""
        return self._leave_queue(
            [ticket for share in self._shares() for ticket in share.waiting if unwanted(ticket.sequence)]
        )

    def take_running(self) -> list[S]:
        """Forget everybody who runs; who that was."""
        running = self.running
        for share in self._shares():
            share.n_running = 0
        self._running = []
        return running

    def _shares(self) -> list[Share[S]]:
        return [self._unbounded, *self._bounded.values()]

    def _share_of(self, tenant: Tenant) -> Share[S]:
        share = self._bounded.get(tenant.name)
        if share is None and tenant.max_running is None:
            return self._unbounded
        if share is None:
            self._bounded = {name: other for name, other in self._bounded.items() if other.n_running or other.waiting}
            share = self._bounded[tenant.name] = Share(self.n_seq_max)
        share.bound = self.n_seq_max if tenant.max_running is None else tenant.max_running
        return share

    def _ready(self) -> Iterable[Ticket[S]]:
        """Whoever waits and has a tenant that may run more, by rank; looks again while others are admitted."""
        bounded = [share.waiting for share in self._bounded.values() if share.waiting and share.has_room]
        if not bounded:
            return self._unbounded.waiting
        queues = [takewhile(lambda ticket: ticket.share.has_room, waiting) for waiting in bounded]
        return merge(self._unbounded.waiting, *queues, key=_rank)

    def _stop(self, ticket: Ticket[S]) -> None:
        self._running.remove(ticket)
        ticket.share.n_running -= 1

    def _wait(self, ticket: Ticket[S]) -> None:
        insort(ticket.share.waiting, ticket, key=_rank)
        self._waiting_choices[ticket.request] += 1

    def _leave_queue(self, leaving: list[Ticket[S]]) -> int:
        if leaving:
            self._waiting_choices -= Counter(ticket.request for ticket in leaving)
            left = set(leaving)
            for share in {ticket.share for ticket in leaving}:
                share.waiting = [ticket for ticket in share.waiting if ticket not in left]
        return len(leaving)

    def _reservation(self, ticket: Ticket[S]) -> int:
        return min(ticket.sequence.n_max, ticket.sequence.n_tokens + self.LOOKAHEAD)


def _rank(ticket: Ticket[S]) -> tuple[tuple[int, int], int, int]:
    return ticket.rank
