"""The engine thread: takes orders between steps, lets the Runner step, settles what came of it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from llamafast._core import stepper
from llamafast._core.runner import Runner
from llamafast._core.sequence import Sequence
from llamafast._core.status import drain_log
from llamafast.engine.cache import Part, PrefixCache
from llamafast.engine.embeddings import EmbeddingQueue, Turns
from llamafast.engine.prefill import PrefillQueue
from llamafast.engine.scheduler import Scheduler
from llamafast.engine.types import Histogram
from llamafast.errors import EngineFailure, LlamafastError

logger = logging.getLogger(__name__)

# An upper bound only: submit, cancel and finished sequences end a run of steps before.
STEPS_PER_RUN = 1 << 20
# Between two steps states are saved and restored for about this long, and always at least one part of each.
COPY_SECONDS = 0.005
# Where nobody has a step to take, states are saved only after the event loop has had so long to send the last tokens:
# it needs the GIL, as saving does.
SENDING_SECONDS = 0.001
# A prompt that is computed apart may compute again a running sequence's tokens up to this part of its own.
AGAIN_SHARE = 4


class Worker:
    """Owns the Runner, the Scheduler and the PrefixCache; its thread alone touches them, but for what they call
    thread-safe.

    The thread cannot die: whatever goes wrong in a round ends the sequences that were running, is logged and counted,
    and the next round goes on.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler[Sequence],
        cache: PrefixCache,
        on_failure: Callable[[list[int], LlamafastError], None],
        embeddings: EmbeddingQueue | None = None,
        prefills: PrefillQueue | None = None,
    ) -> None:
        self.runner = runner
        self.prefills = prefills
        self.scheduler = scheduler
        self.cache = cache
        self.embeddings = embeddings
        self._turns = None if embeddings is None else Turns(embeddings)
        self._on_failure = on_failure
        self._wake = threading.Condition()
        self._arrived: list[tuple[Sequence, int]] = []
        self._cancelled: list[int] = []
        self._ended: deque[tuple[Sequence, str]] = deque()  # still in memory, and what they count as
        self._restores: dict[Sequence, deque[Part]] = {}
        self._closing = False
        self._busy_since: float | None = None
        self._counts = {"submitted": 0, "admitted": 0, "completed": 0, "cancelled": 0, "failed": 0, "preempted": 0}
        self._counts |= {"lookup_failures": 0, "save_failures": 0, "restore_failures": 0}
        self._threads = [threading.Thread(target=self._loop, name="llamafast-engine", daemon=True)]
        if prefills is not None:
            run = prefills.prefiller.run
            self._threads.append(threading.Thread(target=run, name="llamafast-prefill", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop after the current step; returns when the threads have ended."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self.runner.interrupt()
        if self.prefills is not None:
            self.prefills.prefiller.close()
        for thread in self._threads:
            thread.join()

    def enqueue(self, sequences: list[Sequence], priority: int = 0) -> None:
        """Any thread, before a ``wake``."""
        with self._wake:
            self._arrived.extend((sequence, priority) for sequence in sequences)

    def cancel(self, tags: list[int]) -> None:
        """Any thread, before a ``wake``."""
        with self._wake:
            self._cancelled.extend(tags)

    def wake(self) -> None:
        """Look after the current step at what was enqueued, also in ``embeddings``, and cancelled. Any thread."""
        with self._wake:
            self._wake.notify()
        self.runner.interrupt()

    @property
    def n_waiting(self) -> int:
        """Sequences that have not run yet or were preempted, and embedding requests. Any thread."""
        n_embeddings = 0 if self.embeddings is None else self.embeddings.n_waiting
        return self.scheduler.n_waiting + len(self._arrived) + n_embeddings

    def stalled(self) -> float:
        """Seconds that work has been waiting without a step; 0 when idle. Any thread."""
        busy_since = self._busy_since
        if busy_since is None:
            return 0.0
        since_step = self.runner.since_last_step()
        if self.embeddings is not None:
            since_step = min(since_step, self.embeddings.embedder.since_last_step())
        return min(time.monotonic() - busy_since, since_step)

    def counters(self) -> dict[str, float]:
        """Any thread; never waits for a step."""
        return (
            self.runner.counts()
            | self._counts
            | {
                "running": self.scheduler.n_running,
                "waiting": self.n_waiting,
                "free_sequences": self.runner.n_free,
                "used_cells": self.runner.n_cells,
                "reserved_cells": self.scheduler.n_reserved,
                "total_cells": self.runner.total_cells,
            }
            | self.cache.counts()
            | (self.embeddings.counts() if self.embeddings else {})
        )

    def histograms(self) -> dict[str, Histogram]:
        """Any thread; never waits for a step."""
        return self.runner.histograms()

    @property
    def _has_work(self) -> bool:
        return self.scheduler.has_work or self._embeds

    @property
    def _embeds(self) -> bool:
        return self.embeddings is not None and self.embeddings.has_work

    def _loop(self) -> None:
        while not self._closing:
            try:
                self._take_orders()
                self._round()
            except Exception:
                logger.exception("a round of steps failed")
                self._reset()

    def _take_orders(self) -> None:
        """Wait until there is something to do."""
        with self._wake:
            while not (self._arrived or self._cancelled or self._closing or self._has_work):
                self._busy_since = None
                self._wake.wait()
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
        if self._busy_since is None:
            self._busy_since = time.monotonic()
        for sequence, priority in arrived:
            self.scheduler.enqueue(sequence, priority)
        self._counts["submitted"] += len(arrived)
        if cancelled:
            self._cancel(set(cancelled))

    def _round(self) -> None:
        self._generate()
        if self._turns is not None:
            self._turns.embed(beside=self.scheduler.has_work)

    def _generate(self) -> None:
        if self._ended and len(self._ended) == self.scheduler.n_running:
            self._let_send()
        deadline = time.monotonic() + COPY_SECONDS
        self._release(deadline)
        if self.prefills is not None and self.prefills.has_work:
            for prefilled in self.prefills.advance():
                self._arrive(*prefilled)
        for sequence in self.scheduler.admit():
            self._start(sequence)
            self._counts["admitted"] += 1
        self._restore(deadline)
        if not self.scheduler.n_running:
            return
        start, shared = time.monotonic(), self._embeds
        prefills = self.prefills is not None and self.prefills.has_work
        status = self.runner.run(1 if self._ended or self._restores or prefills or shared else STEPS_PER_RUN)
        if self._turns is not None:
            self._turns.generated(time.monotonic() - start, shared=shared)
        if status in (stepper.FINISHED, stepper.SAVE_DUE):
            self._save_due()
        if status == stepper.FINISHED:
            ended = {sequence for sequence, _ in self._ended}
            self._ended.extend((sequence, "completed") for sequence in self.runner.finished() if sequence not in ended)
        elif status in (stepper.SAVE_DUE, stepper.PREFILLED):
            pass
        elif status == stepper.NO_ROOM:
            self._make_room()
        elif status != stepper.PAUSED:
            reason = drain_log() or "no reason given"
            logger.error("llama_decode failed with code %d: %s", status, reason)
            self._fail(
                self.runner.in_last_step() or self.scheduler.running,
                EngineFailure(f"llama_decode failed with code {status}"),
            )

    def _let_send(self) -> None:
        with self._wake:
            if not (self._arrived or self._cancelled or self._closing or self.scheduler.n_waiting):
                self._wake.wait(SENDING_SECONDS)

    def _make_room(self) -> None:
        """The memory is full: the youngest starts over later; alone, a sequence cannot be helped."""
        if self._ended:
            self._release(deadline=float("inf"))
            return
        sequence = self.scheduler.preempt()
        if sequence is not None:
            self._stop(sequence)
            self._counts["preempted"] += 1
            return
        self._fail(self.scheduler.running, EngineFailure("the request does not fit the context's memory"))

    def _cancel(self, tags: set[int]) -> None:
        for sequence in self.scheduler.waiting:
            if sequence.tag in tags:
                self.scheduler.remove(sequence)
                self._counts["cancelled"] += 1
        ended = {sequence for sequence, _ in self._ended}
        for sequence in self.scheduler.running:
            if sequence.tag in tags and sequence not in ended:
                self.runner.halt(sequence)
                self._ended.append((sequence, "cancelled"))

    def _fail(self, sequences: list[Sequence], error: LlamafastError) -> None:
        for sequence in sequences:
            # what a failed step left in memory is not worth keeping
            if self.scheduler.remove(sequence):
                self._forget_parts(sequence)
                self.runner.remove(sequence)
        self._ended = deque(one for one in self._ended if one[0] not in sequences)
        self._counts["failed"] += len(sequences)
        self._on_failure([sequence.tag for sequence in sequences], error)

    def _reset(self) -> None:
        """After an error nobody foresaw: whoever runs is failed, memory starts afresh, whoever waits stays."""
        sequences = self.scheduler.take_running()
        self.runner.clear()
        if self.embeddings is not None:
            self.embeddings.reset()
        self._ended.clear()
        self._restores.clear()
        if self.prefills is not None:
            self.prefills.clear()
        self._counts["failed"] += len(sequences)
        self._on_failure([sequence.tag for sequence in sequences], EngineFailure("the engine failed"))

    def _start(self, sequence: Sequence) -> None:
        """Let a sequence run from the longest prefix there is: a running sequence's or a saved one.

        If what is left of its prompt takes long it is computed apart, where running sequences have nothing to share: so
        much that they would have shared may then be computed again.
        """
        shared = self.runner.shareable(sequence)
        n_wanted = sequence.n_tokens - 1
        again = (n_wanted - shared) // AGAIN_SHARE if self._pays_apart(sequence, n_wanted - shared) else 0
        enough = max(0, shared - again)
        parts = self._find(sequence, enough)
        n_found = parts[-1].stop if parts else 0
        if self.prefills is not None and enough <= n_found and self._pays_apart(sequence, n_wanted - n_found):
            self.runner.add(sequence, n_wanted)
            self.prefills.add(sequence, parts)
            n_found = n_wanted
        else:
            self.runner.add(sequence, n_found)
            if parts:
                self._restores[sequence] = deque(parts)
        sequence.save_at = self.cache.next_save(n_found, sequence.n_prompt, sequence.checkpoints)

    def _pays_apart(self, sequence: Sequence, n_rows: int) -> bool:
        if self.prefills is None or sequence.scores_prompt:
            return False
        return self.prefills.pays(n_rows, self.runner.row_seconds)

    def _find(self, sequence: Sequence, more_than: int) -> list[Part]:
        try:
            return self.cache.find(sequence.tokens(), sequence.salt, more_than)
        except Exception:
            # a prefix that could not be looked up is no reason to fail anybody
            logger.exception("cannot look up a prompt of %d tokens", sequence.n_prompt)
            self._counts["lookup_failures"] += 1
            return []

    def _arrive(self, sequence: Sequence, parts: list[Part], n_found: int, row: int) -> None:
        """A prompt was computed apart, or as much of it as could be."""
        self.runner.prefilled(sequence, parts[-1].stop if parts else 0, n_found, row)
        if sequence.finished:
            self._ended.append((sequence, "completed"))
        elif parts:
            self._restores[sequence] = deque(parts)

    def _forget_parts(self, sequence: Sequence) -> None:
        self._restores.pop(sequence, None)
        if self.prefills is not None:
            self.prefills.drop(sequence)

    def _restore(self, deadline: float) -> None:
        """Restore parts of prefixes until the deadline, at least one."""
        while self._restores:
            sequence, parts = next(iter(self._restores.items()))
            done = self.runner.restore(sequence, *parts.popleft())
            self._counts["restore_failures"] += not done
            if not done or not parts:
                del self._restores[sequence]
            if time.monotonic() >= deadline:
                return

    def _save_due(self) -> None:
        """Save a part of whoever is due until the deadline, at least one; all where the next step loses the state."""
        deadline = time.monotonic() + COPY_SECONDS
        for sequence in self.runner.save_due():
            self._save(sequence)
            sequence.save_at = self.cache.next_save(sequence.n_past, sequence.n_prompt, sequence.checkpoints)
            if self.cache.cuts_anywhere and time.monotonic() >= deadline:
                return

    def _release(self, deadline: float) -> None:
        """Free the memory of sequences that have ended until the deadline, at least of one."""
        while self._ended:
            sequence, outcome = self._ended.popleft()
            self.scheduler.remove(sequence)
            self._stop(sequence)
            self._counts[outcome] += 1
            if time.monotonic() >= deadline:
                return

    def _stop(self, sequence: Sequence) -> None:
        """Free a sequence's memory; what it computed is kept if it may be of use."""
        self._forget_parts(sequence)
        self._save(sequence)
        self.runner.remove(sequence)

    def _save(self, sequence: Sequence) -> None:
        try:
            tokens = sequence.tokens()[: sequence.n_past]
            start, stop = self.cache.unsaved(tokens, sequence.salt)
            if stop:
                self.cache.put(tokens[:stop], sequence.salt, self.runner.save(sequence, start, stop))
        except Exception:
            # a prefix that could not be kept is no reason to fail anybody
            logger.exception("cannot keep a prefix of %d tokens", sequence.n_past)
            self._counts["save_failures"] += 1
