"""Who computes next: the one arbiter over generation and everybody who shares the engine thread with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from llamafast.engine.pace import Pace


class Claimant(Protocol):
    """Wants time of the engine thread, and nothing else of it: embeddings, for one."""

    @property
    def has_work(self) -> bool: ...

    def step(self, seconds: float) -> None:
        """Compute for about so long, or for as long as the least that can be computed at one go takes."""


class Streams(Protocol):
    """Generation. Its readers see every pause, so it says how long the others may take.

    ``spare`` is how many seconds that is before its next step.
    """

    spare: float

    @property
    def has_work(self) -> bool: ...

    def generate(self, *, alone: bool) -> float:
        """Take a step, or as many as go without a decision where it is ``alone``; the seconds these took."""


class Shares:
    """As long as several have work each gets as many seconds as the others, be their steps long or short, and as far as
    the streams' gaps allow. Nobody saves up time by being away, and who is alone gets everything. Engine thread only,
    but for ``has_work``.
    """

    def __init__(self, claimants: Sequence[Claimant], pace: Pace) -> None:
        self._claimants = claimants
        self._pace = pace
        # Seconds that each has had more than whoever had the fewest of those who have work; generation's come first.
        # What somebody had too much is still known when it comes back from a short absence.
        self._ahead = [0.0] * (1 + len(claimants))
        self._saved = 0.0  # of what the streams had to spare

    @property
    def has_work(self) -> bool:
        """Whether anybody but generation has work. Any thread."""
        return any(claimant.has_work for claimant in self._claimants)

    def round(self, streams: Streams) -> None:
        """Let generation take its steps, and then the others what these have left."""
        waiting = self._waiting()
        if ran := streams.generate(alone=not waiting):
            self._count(0, ran, [0, *waiting])
        if streams.has_work:
            self._share(streams)
        else:
            self._take_turns()

    def _waiting(self) -> list[int]:
        return [i for i, claimant in enumerate(self._claimants, 1) if claimant.has_work]

    def _share(self, streams: Streams) -> None:
        """Fill the pause between two steps: those who have had the least first. A pause that is too short for a step is
        saved up for a later one."""
        waiting = self._waiting()
        if not waiting:
            return
        least = self._pace.least_beside_seconds
        self._saved = max(streams.spare, min(self._saved + max(0.0, streams.spare), least))
        if self._saved < least:
            return
        taken = spent = 0.0
        served: set[int] = set()
        # a step may take much less than it might
        while taken + spent / 2 <= self._saved and (i := self._next(waiting, served)):
            spent = self._step(i, min(max(self._pace.beside_seconds, self._due(i)), self._saved - taken), [0, *waiting])
            taken += spent
            served.add(i)
            waiting = self._waiting()
        if taken:
            self._saved = 0.0

    def _take_turns(self) -> None:
        """There are no streams: one step of whoever has had the least."""
        self._saved = 0.0
        waiting = self._waiting()
        if waiting:
            self._step(min(waiting, key=self._ahead.__getitem__), self._pace.alone_seconds, waiting)
        else:
            self._ahead = [0.0] * len(self._ahead)

    def _due(self, i: int) -> float:
        """How many seconds more than it generation has had."""
        return self._ahead[0] - self._ahead[i]

    def _next(self, waiting: list[int], served: set[int]) -> int:
        """Who may take the next step beside generation, 0 for nobody. Another one in the same pause must be worth it;
        else it is made up for with the next."""
        due = {i: self._due(i) for i in waiting}
        able = [i for i in waiting if due[i] >= (self._pace.beside_seconds if i in served else 0)]
        return max(able, key=due.__getitem__, default=0)

    def _step(self, i: int, seconds: float, working: list[int]) -> float:
        start = time.monotonic()
        self._claimants[i - 1].step(seconds)
        spent = time.monotonic() - start
        self._count(i, spent, working)
        return spent

    def _count(self, i: int, seconds: float, working: list[int]) -> None:
        """One has had ``seconds`` while ``working`` had work."""
        self._ahead[i] += seconds
        least = min(self._ahead[k] for k in working)
        self._ahead = [max(0.0, ahead - least) for ahead in self._ahead]
