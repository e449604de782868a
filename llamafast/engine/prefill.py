"""Long prompts, computed in the Prefiller's own context and handed over as saved parts.

A sequence whose prompt takes long waits for its parts as if they came from the prefix cache; meanwhile the others go on
decoding. Parts are handed over as they are computed, so that others need not wait for the end of what they share.
Disaggregated prefill (Zhong et al. 2024, DistServe), within one process and on the same cores.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from llamafast._core.prefiller import Prefiller
from llamafast._core.sequence import Sequence
from llamafast._core.states import State
from llamafast.engine.cache import PART, Part, Parts, PrefixCache
from llamafast.engine.pace import Pace

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """A sequence whose first ``n_tokens`` tokens are to be had, all that it has when it comes. Of these the first
    ``n_done`` are computed and the first ``n_saved`` saved; ``goal`` of them somebody can go on with."""

    sequence: Sequence
    tokens: array[int]
    salt: bytes
    found: Parts
    parts: Parts
    n_found: int
    goal: int
    seq_id: int = -1
    n_done: int = 0
    n_saved: int = 0
    n_rows: int = 0
    row: int = -1
    dropped: bool = False

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def n_to_goal(self) -> int:
        return (self.goal if self.goal > self.n_done else self.n_tokens) - self.n_done

    @property
    def done(self) -> bool:
        return self.n_done == self.n_tokens

    @property
    def saved(self) -> bytes | None:
        """The bytes of the next part that was found, as ``PrefixCache.saved`` has them; None without one."""
        return self.found.saved if self.found else None

    def drop(self) -> None:
        self.dropped = True
        self.found.clear()


class Prefilled(NamedTuple):
    """News of a sequence: further saved ``parts``, in order, and, once nothing more will come, the ``n_tokens`` that
    they and what was found hold; else that is -1.

    Where these are all it has, ``row`` of the Prefiller's last batch has the logits of the last one until another batch
    is computed; else it is -1.
    """

    sequence: Sequence
    parts: Parts
    n_tokens: int
    row: int


class PrefillQueue:
    """The jobs in order of arrival. Engine thread only.

    Batches are filled with whoever needs the fewest rows first until somebody can go on; in every other one the oldest
    job comes before them, so that short prompts do not wait for a long one, nor a long one for all the short ones that
    come.
    """

    def __init__(self, prefiller: Prefiller, cache: PrefixCache, pace: Pace) -> None:
        self.least_seconds = pace.apart_least_seconds
        self._pace = pace
        self.prefiller = prefiller
        self._cache = cache
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._free = list(range(prefiller.n_seq_max))
        self._row_seconds = 0.0
        self._oldest_first = False

    @property
    def has_work(self) -> bool:
        """Whether ``advance`` has something to do now."""
        if self.prefiller.working:
            return False
        return self._has_room or any(not job.found or job.saved is not None for job in self._running)

    @property
    def has_jobs(self) -> bool:
        return bool(self._waiting or self._running)

    def pays(self, n_rows: int, row_seconds: float) -> bool:
        """Whether a prompt with so many rows left, each of which takes so long, is better computed here."""
        self._row_seconds = self._row_seconds or row_seconds
        return n_rows > 0 and n_rows * row_seconds >= self.least_seconds

    def least_rows(self, row_seconds: float) -> int:
        """So many rows take long enough to be computed here."""
        return ceil(self.least_seconds / row_seconds) if row_seconds else 0

    def add(self, sequence: Sequence, found: list[Part]) -> None:
        """Compute what ``found`` leaves of a sequence's tokens."""
        tokens = sequence.tokens()
        n_found = found[-1].stop if found else 0
        parts = Parts(self._cache)
        self._waiting.append(
            Job(sequence, tokens, sequence.salt, Parts(self._cache, found), parts, n_found, len(tokens))
        )

    def drop(self, sequence: Sequence) -> None:
        """Nobody waits for it any more."""
        for job in [*self._waiting, *self._running]:
            if job.sequence is sequence:
                job.drop()
        self._waiting = deque(job for job in self._waiting if not job.dropped)
        self._abort_unwanted()

    def clear(self) -> None:
        for job in [*self._waiting, *self._running]:
            job.drop()
        self._waiting.clear()
        self._abort_unwanted()

    def advance(self, awaited: Callable[[Sequence], int]) -> list[Prefilled]:
        """Settle the last batch and begin the next; what is new since the last call.

        ``awaited`` tells how many tokens of a running sequence the first of those who wait for it needs, all it has
        where nobody waits. At most one saved part is copied in for each call, so that no step waits long; while none is
        here whoever needs none is computed.
        """
        for job in self._running:
            job.goal = awaited(job.sequence) if not job.dropped else job.n_tokens
        self._settle()
        news = [self._news(job) for job in self._running if not job.dropped and (job.parts or job.done)]
        for job in [job for job in self._running if job.done or job.dropped]:
            self._running.remove(job)
            self.prefiller.cut(job.seq_id, 0)
            self._free.append(job.seq_id)
        self._admit(awaited)
        if not self._load():
            self._begin()
        return news

    def _news(self, job: Job) -> Prefilled:
        parts, job.parts = job.parts, Parts(self._cache)
        n_tokens = max(job.n_saved, job.n_found) if job.done else -1
        return Prefilled(job.sequence, parts, n_tokens, job.row if job.done else -1)

    def _abort_unwanted(self) -> None:
        """Do not finish a batch all of whose rows are of jobs that were dropped: whoever comes next would wait."""
        if self.prefiller.working and all(job.dropped for job in self._running if job.n_rows):
            self.prefiller.abort()

    def _settle(self) -> None:
        computed = self.prefiller.code == 0
        n_rows = sum(job.n_rows for job in self._running)
        if n_rows and computed:
            self._row_seconds = self.prefiller.seconds / n_rows
        for job in self._running:
            # also without rows: somebody may have come who waits for what is there
            if not job.dropped and (job.n_rows or job.n_saved < job.goal <= job.n_done):
                try:
                    self._take(job, computed or not job.n_rows)
                except Exception:
                    logger.exception("cannot keep %d computed tokens of a prompt", job.n_done - job.n_saved)
                    self._give_up(job)
            job.n_rows = 0
        self.prefiller.settle()

    def _take(self, job: Job, computed: bool) -> None:
        """Save what was computed of a job once it is a part, the end or what somebody waits for."""
        if not computed:
            self._give_up(job)
            return
        job.n_done += job.n_rows
        awaited = job.n_saved < job.goal <= job.n_done
        if job.n_done - job.n_saved < PART and not job.done and not awaited:
            return
        saved = self.prefiller.save(job.seq_id, job.n_saved, job.n_done)
        job.parts.add(Part(self._state(job, saved), job.n_saved, job.n_done))
        job.n_saved = job.n_done

    def _state(self, job: Job, saved: bytes) -> State:
        """Of what a job has computed and not handed over; one of its own where the cache does not keep it."""
        try:
            tokens = job.tokens[: job.n_done]
            if self._cache.unsaved(tokens, job.salt) == (job.n_saved, job.n_done):
                state = self._cache.put(tokens, job.salt, saved)
                if state.kept:
                    return state
        except Exception:
            logger.exception("cannot keep a prefix of %d tokens", job.n_done)
        return State(saved, None, job.n_saved, job.n_done, spares=0, n_bytes=0)

    def _give_up(self, job: Job) -> None:
        """Leave what is not saved to be computed where everybody else runs."""
        if job.n_saved < job.n_tokens:
            job.tokens = job.tokens[: job.n_saved]
            job.row = -1
        job.n_done = job.n_saved

    def _admit(self, awaited: Callable[[Sequence], int]) -> None:
        """Let waiting jobs run as long as there are sequence ids and cells for them."""
        while self._has_room:
            job = self._waiting.popleft()
            job.seq_id = self._free.pop()
            job.goal = awaited(job.sequence)
            self._running.append(job)

    @property
    def _has_room(self) -> bool:
        """Whether the first of the waiting jobs may run; alone, any may."""
        if not self._waiting or not self._free:
            return False
        n_cells = self._waiting[0].n_tokens + sum(job.n_tokens for job in self._running)
        return n_cells <= self.prefiller.n_ctx or not self._running

    def _load(self) -> bool:
        """Give one job the next part that was found of it; False where none is here."""
        for job in self._running:
            if (saved := job.saved) is None:
                continue
            _, start, stop = job.found.take()
            if saved and self.prefiller.restore(job.seq_id, saved, start, stop):
                job.n_done = job.n_saved = stop
            else:
                # computed again from there on, whatever else was found
                self.prefiller.cut(job.seq_id, start)
                job.found.clear()
            return True
        return False

    def _begin(self) -> None:
        least = rows = self._pace.apart_rows
        if self._row_seconds:
            rows = max(least, int(self._pace.apart_batch_seconds / self._row_seconds) // least * least)
        room = self.prefiller.n_batch
        rows = min(rows, room)
        running = [job for job in self._running if not job.found]
        jobs = sorted(running, key=lambda job: job.n_to_goal)
        self._oldest_first = not self._oldest_first
        if self._oldest_first:
            jobs = [*running[:1], *(job for job in jobs if job is not running[0])]
        for job in jobs:
            if not rows:
                break
            job.sequence.schedule()
            # a few rows left for the next batch would cost more each
            left, most = job.n_tokens - job.n_done, min(rows + least - 1, room)
            job.n_rows = next((end for end in (left, job.n_to_goal) if rows < end <= most), min(rows, left))
            stop = job.n_done + job.n_rows
            row = self.prefiller.add(job.seq_id, job.tokens, job.n_done, stop, stop == job.n_tokens)
            job.row = row if stop == job.n_tokens else -1
            room -= job.n_rows
            rows = max(0, rows - job.n_rows)
        if running:
            self.prefiller.begin()
