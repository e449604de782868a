"""One model of a pool: what is asked of it, in which state it is, and how often it has failed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from llamafast.config import ModelConfig
from llamafast.errors import LlamafastError, ModelFailed
from llamafast.pool.budget import Holder, Phase
from llamafast.pool.children import ChildPort, Door

# Between a process that died and the next one, doubled each time until one lives for long enough.
FIRST_PAUSE, LONGEST_PAUSE, LONG_LIFE = 1.0, 60.0, 60.0
# So many failures within so long are too many.
MOST_FAILURES, FAILURE_SECONDS = 3, 60.0

# So long nobody asks a model for what can wait that has just not answered.
SILENCE_SECONDS = 10.0

FOREVER = float("inf")


class State(Enum):
    """``WEIGHED`` has a process that waits for room."""

    UNLOADED = auto()
    WEIGHED = auto()
    LOADING = auto()
    LOADED = auto()
    UNLOADING = auto()

    @property
    def word(self) -> str:
        """llama-server's."""
        return "loading" if self is State.WEIGHED else self.name.lower()


# Those in which a model has memory.
_PHASES = {
    State.WEIGHED: Phase.WEIGHED,
    State.LOADING: Phase.LOADING,
    State.LOADED: Phase.LOADED,
    State.UNLOADING: Phase.UNLOADING,
}


class Member:
    """``need`` is what it takes in bytes, once that is known. ``pinned``: it is loaded as long as there is no reason
    against it. Times are the clock's, which ``now`` tells."""

    def __init__(self, name: str, config: ModelConfig, now: Callable[[], float]) -> None:
        self.name = name
        self.config = config
        self.pinned = config.load == "startup"
        self.state = State.UNLOADED
        self.child: ChildPort | None = None
        self.need = config.memory_bytes
        self.busy = 0
        self.used_at = 0.0
        self.expires_at = FOREVER
        self.closing = False  # it takes no more requests, as somebody waits for its memory
        self.bringing = False  # a task is about to load it
        self.dismissed = False  # and its process has been told to end
        self.blocked_at: float | None = None
        self.waiting: deque[asyncio.Future[Door]] = deque()
        self.wanted_at: float | None = None
        self.asked = False  # by an administrator
        self.retry_at = 0.0
        self.exit_code: int | None = None
        self.fault = ""
        self.rested = False  # unloaded for a good reason
        self.counts = {"loads": 0, "evictions": 0, "deaths": 0}
        self.silent_at: float | None = None  # when it last did not answer
        self._now = now
        self._pause = 0.0
        self._began_at = 0.0
        self._failures: deque[float] = deque(maxlen=MOST_FAILURES)

    @property
    def failed(self) -> bool:
        """Whether it is not tried again by itself."""
        failures = self._failures
        return len(failures) == MOST_FAILURES and failures[-1] - failures[0] <= FAILURE_SECONDS

    @property
    def silent(self) -> bool:
        """Whether it has let somebody wait in vain a moment ago, and is not worth the next one's wait."""
        return self.silent_at is not None and self._now() - self.silent_at < SILENCE_SECONDS

    def heard(self, answered: bool) -> None:
        self.silent_at = None if answered else self._now()

    @property
    def ready(self) -> bool:
        """Whether it answers, or would after being loaded."""
        return not self.pinned or self.state is State.LOADED or (self.rested and not self.failed)

    @property
    def holds(self) -> Holder | None:
        """The memory that it has, for ``room_for``."""
        phase = _PHASES.get(self.state)
        return None if phase is None else Holder(self.name, phase, self.n_bytes, self.busy > 0, self.used_at)

    @property
    def n_bytes(self) -> int:
        """What it takes, or will once it is loaded; while it only waits for room, what its process has."""
        peak = self.child.peak_bytes() if self.child is not None else None
        need = self.need if self.state is not State.WEIGHED else None
        return max(need or 0, peak or 0)

    def begun(self) -> None:
        self._began_at = self._now()
        self.dismissed = False
        self.silent_at = None
        self.counts["loads"] += 1
        self.exit_code = None
        self.fault = ""

    def use(self) -> None:
        """One more request is on it."""
        self.busy += 1
        self.expires_at = FOREVER

    def leave(self, ttl_seconds: float | None) -> None:
        """A request has ended, which has said how long the model should stay, or not."""
        self.busy -= 1
        self.used_at = self._now()
        if not self.busy:
            self.stay(ttl_seconds)

    def stay(self, ttl_seconds: float | None = None) -> None:
        """From now on nobody uses it; None: for as long as the config says."""
        if ttl_seconds is None or (self.pinned and self.config.ttl_seconds is None):
            ttl_seconds = self.config.ttl_seconds
        self.expires_at = FOREVER if ttl_seconds is None or ttl_seconds < 0 else self._now() + ttl_seconds

    def measured(self, max_bytes: int) -> None:
        """What it has taken this time, now that it is loaded, is what it needs the next one; ``max_bytes`` at most,
        which let it in this time too."""
        peak = self.child.peak_bytes() if self.child is not None else None
        if peak and self.config.memory_bytes is None:
            self.need = min(peak, max_bytes)

    def failure(self, exit_code: int | None, fault: str) -> None:
        """Its process died, or refused to load it."""
        now = self._now()
        self.counts["deaths"] += 1
        self.exit_code, self.fault = exit_code, fault
        self._pause = FIRST_PAUSE if now - self._began_at > LONG_LIFE else min(2 * self._pause, LONGEST_PAUSE)
        self._pause = self._pause or FIRST_PAUSE
        self.retry_at = now + self._pause
        self._failures.append(now)

    def refusal(self, fault: str) -> None:
        """It cannot be loaded, and all who wanted it are told: the next one who does may try at once."""
        self.counts["deaths"] += 1
        self.fault = fault
        self.wanted_at = self.blocked_at = None
        self.asked = False

    def forgive(self) -> None:
        """It may be tried again at once."""
        self._failures.clear()
        self._pause = 0.0
        self.retry_at = 0.0

    def serve(self) -> None:
        """It answers: nobody waits for it any more, and it does not go before they have been answered."""
        assert self.child is not None
        self.wanted_at = self.blocked_at = None
        self.asked = False
        while self.waiting:
            self.use()
            self.waiting.popleft().set_result(self.child.door)

    def refuse(self, error: LlamafastError) -> None:
        """Everybody who waits for it is told."""
        waiting, self.waiting = self.waiting, deque()
        for place in waiting:
            place.set_exception(error)
            place.exception()  # whoever waited may have left

    def has_failed(self) -> ModelFailed:
        return ModelFailed(f"the model {self.name!r} has failed too often: {self.fault}")
