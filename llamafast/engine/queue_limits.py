"""How many requests may wait, how long each may stay, and when who was refused should come back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from time import monotonic
from typing import Protocol

from llamafast.config import ServerConfig
from llamafast.engine.types import Tenant
from llamafast.errors import AnswerTimeout, LlamafastError, QueueFull, QueueTimeout

# With every place in the queue so many choices may wait, be they of one request or of many.
QUEUED_CHOICES = 4
# Of so many departures, the last ones, the rate is taken.
DEPARTURES = 64
# What a client that found the queue full is told: no less, as it would come back at once, and no more, as the rate may
# rise meanwhile. In seconds.
LEAST_RETRY, MOST_RETRY = 1.0, 60.0


class Stay(Protocol):
    """A request as it is seen here."""

    tenant: Tenant
    adapter_ids: tuple[int, ...]

    @property
    def has_begun(self) -> bool:
        """Whether work on any part of it has begun."""
        ...

    @property
    def n_waiting(self) -> int:
        """Its choices on which work has not begun; 1 for one that asks for none."""
        ...


class QueueLimits:
    """Event loop only. For each bound of seconds that the config has, each request has a timer."""

    def __init__(self, config: ServerConfig) -> None:
        self.empty = asyncio.Event()  # set while nobody is there
        self.empty.set()
        self._max_queue = config.max_queue
        self._queue_seconds = config.queue_seconds
        self._request_seconds = config.request_seconds
        self._there: dict[Stay, tuple[Callable[[LlamafastError], None], list[asyncio.TimerHandle]]] = {}
        self._departures: deque[float] = deque(maxlen=DEPARTURES)
        self._idle_seconds = 0.0
        self._idle_since = monotonic()

    def begin(self, request: Stay, abort: Callable[[LlamafastError], None]) -> None:
        """A request has come; ``abort`` ends it with an error, and ``end`` has to follow."""
        if not self._there:
            self._idle_seconds += monotonic() - self._idle_since
            self.empty.clear()
        loop, timers = asyncio.get_running_loop(), []
        if self._queue_seconds is not None:
            timers.append(loop.call_later(self._queue_seconds, self._end_of_queue, request))
        if self._request_seconds is not None:
            timers.append(loop.call_later(self._request_seconds, self._end_of_request, request))
        self._there[request] = abort, timers

    def end(self, request: Stay) -> None:
        """A request has ended, in whatever way; the first time counts."""
        if request not in self._there:
            return
        if request.has_begun:
            self._departures.append(self._clock())
        _, timers = self._there.pop(request)
        for timer in timers:
            timer.cancel()
        if not self._there:
            self._idle_since = monotonic()
            self.empty.set()

    @property
    def there(self) -> Collection[Stay]:
        """The requests that have not ended."""
        return self._there.keys()

    def abort_all(self, error: LlamafastError) -> None:
        for abort, _ in list(self._there.values()):
            abort(error)

    def check(self, tenant: Tenant, n_more: int, n_requests: int, n_choices: int) -> None:
        """Whether a request of ``tenant`` for ``n_more`` choices may wait, where ``n_requests`` with ``n_choices`` do.
        Raises QueueFull.

        Requests are counted, not their choices, so that one with thousands of them shuts nobody out; choices are
        bounded for those who ask for several. A tenant with a bound of its own has a queue of its own, as most of what
        waits there waits for that bound alone.
        """
        most = QUEUED_CHOICES * self._max_queue
        if n_requests >= self._max_queue or (n_more > 1 and n_choices + n_more > most):
            # who queues with whom is looked at where it matters, as that takes as long as there are requests
            n_requests, n_choices = self.waiting(tenant)
        if n_requests and n_requests >= self._max_queue:
            raise QueueFull(f"{n_requests} requests wait already, the queue takes {self._max_queue}")
        if n_more > 1 and n_choices and n_choices + n_more > most:
            raise QueueFull(f"{n_choices} choices wait already, with {n_more} more there would be more than {most}")

    def waiting(self, tenant: Tenant) -> tuple[int, int]:
        """How many requests a request of ``tenant`` would queue with, and how many choices of these wait."""
        queue = _queue(tenant)
        waiting = [stay.n_waiting for stay in self._there if _queue(stay.tenant) == queue]
        return sum(n > 0 for n in waiting), sum(waiting)

    def retry_after(self, n_waiting: int) -> float:
        """In how many seconds half of ``n_waiting`` requests will have begun, if requests leave as fast as the last
        ones did: LEAST_RETRY to MOST_RETRY, and LEAST_RETRY where nothing was measured yet."""
        if len(self._departures) < 2:
            return LEAST_RETRY
        # up to now: time goes on where nobody leaves
        seconds = self._clock() - self._departures[0]
        per_request = seconds / (len(self._departures) - 1)
        return min(max(LEAST_RETRY, per_request * n_waiting / 2), MOST_RETRY)

    def _clock(self) -> float:
        """Seconds in which somebody was there, from any beginning: that nobody leaves an empty house is no slowness."""
        return (monotonic() if self._there else self._idle_since) - self._idle_seconds

    def _end_of_queue(self, request: Stay) -> None:
        if not request.has_begun:
            abort, _ = self._there[request]
            abort(QueueTimeout(f"the request has waited for {self._queue_seconds:g} seconds, the longest it may"))

    def _end_of_request(self, request: Stay) -> None:
        abort, _ = self._there[request]
        abort(AnswerTimeout(f"the request has taken {self._request_seconds:g} seconds, the longest it may"))


def _queue(tenant: Tenant) -> str | None:
    return None if tenant.max_running is None else tenant.name
