"""Long prompts, computed in the Prefiller's own context and handed over as saved parts.

A sequence whose prompt takes long waits for its parts as if they came from the prefix cache; meanwhile the others go on
decoding. Disaggregated prefill (Zhong et al. 2024, DistServe), within one process and on the same cores.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from llamafast._core.prefiller import Prefiller
from llamafast._core.sequence import Sequence
from llamafast.engine.cache import PART, Part, PrefixCache

logger = logging.getLogger(__name__)

# A prompt that takes less than this is not worth the two copies that moving it costs.
LEAST_SECONDS = 0.1
# A batch that is computed at one go: all of a shorter prompt's rows are done at its end, and nothing of it is kept when
# nobody wants it any more.
BATCH_SECONDS = 0.4
# Its rows are a multiple of these: each costs more in a smaller batch.
LEAST_ROWS = 64


@dataclass(eq=False)
class Job:
    """A sequence whose first ``n_tokens`` tokens are to be had, all that it has when it comes."""

    sequence: Sequence
    tokens: array[int]
    salt: bytes
    found: deque[Part]
    seq_id: int = -1
    n_found: int = 0
    n_done: int = 0
    n_saved: int = 0
    n_rows: int = 0
    row: int = -1
    dropped: bool = False
    parts: list[Part] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


class Prefilled(NamedTuple):
    """What there is of a sequence's tokens: saved parts, in order, ``n_found`` tokens of which were found.

    Where they are all it has, ``row`` of the Prefiller's last batch has the logits of the last one until another batch
    is computed; else it is -1.
    """

    sequence: Sequence
    parts: list[Part]
    n_found: int
    row: int


class PrefillQueue:
    """The jobs in order of arrival. Engine thread only.

    Batches are filled with whoever needs the fewest rows first; in every other one the oldest job comes before them, so
    that short prompts do not wait for a long one, nor a long one for all the short ones that come.
    """

    def __init__(self, prefiller: Prefiller, cache: PrefixCache, least_seconds: float = LEAST_SECONDS) -> None:
        self.least_seconds = least_seconds
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
        return not self.prefiller.working and bool(self._waiting or self._running)

    def pays(self, n_rows: int, row_seconds: float) -> bool:
        """Whether a prompt with so many rows left, each of which takes so long, is better computed here."""
        self._row_seconds = self._row_seconds or row_seconds
        return n_rows > 0 and n_rows * row_seconds >= self.least_seconds

    def add(self, sequence: Sequence, found: list[Part]) -> None:
        """Compute what ``found`` leaves of a sequence's tokens."""
        self._waiting.append(Job(sequence, sequence.tokens(), sequence.salt, deque(found), parts=list(found)))

    def drop(self, sequence: Sequence) -> None:
        """Nobody waits for it any more."""
        self._waiting = deque(job for job in self._waiting if job.sequence is not sequence)
        for job in self._running:
            job.dropped = job.dropped or job.sequence is sequence

    def clear(self) -> None:
        self._waiting.clear()
        for job in self._running:
            job.dropped = True

    def advance(self) -> list[Prefilled]:
        """Settle the last batch and begin the next; whoever is done.

        At most one saved part is copied in for each call, so that no step waits long.
        """
        self._settle()
        done = [job for job in self._running if job.n_done == job.n_tokens or job.dropped]
        for job in done:
            self._running.remove(job)
            self.prefiller.cut(job.seq_id, 0)
            self._free.append(job.seq_id)
        self._admit()
        loading = next((job for job in self._running if job.found), None)
        if loading is not None:
            self._load(loading)
        else:
            self._begin()
        return [Prefilled(job.sequence, job.parts, job.n_found, job.row) for job in done if not job.dropped]

    def _settle(self) -> None:
        computed = self.prefiller.code == 0
        n_rows = sum(job.n_rows for job in self._running)
        if n_rows and computed:
            self._row_seconds = self.prefiller.seconds / n_rows
        for job in self._running:
            if job.n_rows and not job.dropped:
                try:
                    self._take(job, computed)
                except Exception:
                    logger.exception("cannot keep %d computed tokens of a prompt", job.n_done - job.n_saved)
                    self._give_up(job)
            job.n_rows = 0
        self.prefiller.settle()

    def _take(self, job: Job, computed: bool) -> None:
        """Save what was computed of a job once it is a part or the end."""
        if not computed:
            self._give_up(job)
            return
        job.n_done += job.n_rows
        if job.n_done - job.n_saved < PART and job.n_done < job.n_tokens:
            return
        part = Part(self.prefiller.save(job.seq_id, job.n_saved, job.n_done), job.n_saved, job.n_done)
        job.parts.append(part)
        job.n_saved = job.n_done
        tokens = job.tokens[: job.n_done]
        if self._cache.unsaved(tokens, job.salt) == (part.start, part.stop):
            self._cache.put(tokens, job.salt, part.saved)

    def _give_up(self, job: Job) -> None:
        """Leave what is not saved to be computed where everybody else runs."""
        if job.n_saved < job.n_tokens:
            job.tokens = job.tokens[: job.n_saved]
            job.row = -1
        job.n_done = job.n_saved

    def _admit(self) -> None:
        """Let waiting jobs run as long as there are sequence ids and cells for them."""
        n_cells = sum(job.n_tokens for job in self._running)
        while self._waiting and self._free:
            job = self._waiting[0]
            n_cells += job.n_tokens
            if n_cells > self.prefiller.n_ctx and self._running:
                return
            self._waiting.popleft()
            job.seq_id = self._free.pop()
            self._running.append(job)

    def _load(self, job: Job) -> None:
        saved, start, stop = job.found.popleft()
        if self.prefiller.restore(job.seq_id, saved, start, stop):
            job.n_found = job.n_done = job.n_saved = stop
        else:
            self.prefiller.cut(job.seq_id, start)
            job.found.clear()
            job.parts = [part for part in job.parts if part.stop <= start]

    def _begin(self) -> None:
        rows = LEAST_ROWS
        if self._row_seconds:
            rows = max(LEAST_ROWS, int(BATCH_SECONDS / self._row_seconds) // LEAST_ROWS * LEAST_ROWS)
        room = self.prefiller.n_batch
        rows = min(rows, room)
        jobs = sorted(self._running, key=lambda job: job.n_tokens - job.n_done)
        self._oldest_first = not self._oldest_first
        if self._oldest_first:
            jobs = [*self._running[:1], *(job for job in jobs if job is not self._running[0])]
        for job in jobs:
            if not rows:
                break
            left = job.n_tokens - job.n_done
            # a few rows left for the next batch would cost more each
            job.n_rows = left if left < min(rows + LEAST_ROWS, room + 1) else rows
            stop = job.n_done + job.n_rows
            row = self.prefiller.add(job.seq_id, job.tokens, job.n_done, stop, stop == job.n_tokens)
            job.row = row if stop == job.n_tokens else -1
            room -= job.n_rows
            rows = max(0, rows - job.n_rows)
        if self._running:
            self.prefiller.begin()
