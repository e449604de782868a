"""The engine thread: takes orders between steps, lets the Runner step, settles what came of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from llamafast._core.progress import last_progress
from llamafast._core.runner import Runner
from llamafast._core.sequence import PHASE_FOLLOWING, PHASE_RESTORING, Sequence
from llamafast._core.step import FINISHED, NO_ROOM, PAUSED, SAVE_DUE
from llamafast.engine.embeddings import EmbeddingQueue
from llamafast.engine.encoder_outputs import EncoderOutputs
from llamafast.engine.encoder_turns import EncoderTurns
from llamafast.engine.kv_transfer import KVTransfer
from llamafast.engine.media import MediaEncoder
from llamafast.engine.orders import Orders
from llamafast.engine.pace import Pace
from llamafast.engine.scheduler import Arrival, Scheduler
from llamafast.engine.shares import Shares
from llamafast.engine.step_failure import step_failure
from llamafast.engine.types import Histogram
from llamafast.errors import EngineFailure, LlamafastError

logger = logging.getLogger(__name__)

# An upper bound only: submit, cancel and finished sequences end a run of steps before.
STEPS_PER_RUN = 1 << 20
# The encoder does one after the other, so a few give it something to do.
LOOKED_AHEAD = 4
# After so long without anybody who runs, what is for such times is done.
IDLE_SECONDS = 1.0
# Who waits for bytes of a prefix has it looked at so often whether they are late.
LATE_SECONDS = 0.05
# Between two tries to start afresh.
RESET_SECONDS = 0.1


class Worker:
    """Owns the Runner, the Scheduler and the KVTransfer; its thread alone touches them, but for what they call
    thread-safe.

    The thread cannot die: whatever goes wrong in a round ends the sequences that were running, is logged and counted,
    and the next round goes on.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler[Sequence],
        transfer: KVTransfer,
        on_failure: Callable[[list[int], LlamafastError], None],
        pace: Pace,
        embeddings: EmbeddingQueue | None = None,
        encoder: MediaEncoder | None = None,
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.transfer = transfer
        self.embeddings = embeddings
        self.encoder = encoder
        self._outputs = EncoderOutputs(runner, encoder, self.wake)
        self._pace = pace
        self._turns = EncoderTurns(encoder) if encoder is not None and encoder.shares_cpus else None
        self._shares = Shares([claimant for claimant in (embeddings, self._turns) if claimant is not None], pace)
        self._on_failure = on_failure
        self._orders = Orders(runner.interrupt, self._turns)
        self._ended: deque[tuple[Sequence, str]] = deque()  # still in memory, and what they count as
        self._idles = False  # nothing is to be done but to wait for the bytes of prefixes or the rows of media
        self._busy_since: float | None = None
        self.spare = self._worked_at = self._copies_end = 0.0
        self._unstepped = False  # somebody interrupted the last run before its step
        self._counts = {"submitted": 0, "admitted": 0, "completed": 0, "cancelled": 0, "failed": 0, "preempted": 0}
        if encoder is not None and self._turns is not None:
            encoder.on_busy = self.wake
        self._thread = threading.Thread(target=self._loop, name="llamafast-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, keeping_seconds: float = 0.0) -> None:
        """Stop after the current step; returns when the thread has ended and what outlives it is kept, which may take
        so long."""
        self._orders.close()
        self._thread.join()
        self.transfer.close(keeping_seconds)

    def enqueue(self, arrival: Arrival[Sequence]) -> None:
        """Any thread, before a ``wake``."""
        self._orders.arrive(arrival)

    def cancel(self, tags: list[int]) -> None:
        """Any thread, before a ``wake``."""
        self._orders.cancel(tags)

    def do(self, call: Callable[[], object]) -> None:
        """Any thread, before a ``wake``: the engine thread calls what raises nothing, between two steps."""
        self._orders.do(call)

    def wake(self) -> None:
        """Look after the current step at all orders, also those in ``embeddings``, and at bytes of prefixes and rows
        of media that have come. Any thread."""
        self._orders.wake()

    @property
    def n_waiting(self) -> int:
        """Sequences that have not run yet or were preempted, and embedding requests. Any thread."""
        n_arrived = sum(len(arrival.choices) for arrival in self._orders.arrived)
        return self.scheduler.n_waiting + n_arrived + self._n_waiting_embeddings

    @property
    def n_waiting_requests(self) -> int:
        """Requests that have sequences or inputs waiting. Any thread."""
        n_arrived = len({arrival.request for arrival in self._orders.arrived})
        return self.scheduler.n_waiting_requests + n_arrived + self._n_waiting_embeddings

    @property
    def _n_waiting_embeddings(self) -> int:
        return 0 if self.embeddings is None else self.embeddings.n_waiting

    def stalled(self) -> float:
        """Seconds in which work waited and neither a step nor a node of one was computed; 0 when idle. Any thread."""
        busy_since = self._busy_since
        if busy_since is None or (self._idles and self._outputs.awaits):  # a picture may take a minute
            return 0.0
        since_step = self.runner.since_last_step()
        if self.embeddings is not None:
            since_step = min(since_step, self.embeddings.embedder.since_last_step())
        now = time.monotonic()
        return min(now - busy_since, since_step, now - last_progress())

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
            | self.transfer.counts()
            | (self.embeddings.counts() if self.embeddings else {})
            | (self.encoder.counts() if self.encoder else {})
        )

    def histograms(self) -> dict[str, Histogram]:
        """Any thread; never waits for a step."""
        return self.runner.histograms()

    def _loop(self) -> None:
        while not self._orders.closing:
            try:
                self._take_orders()
                self._shares.round(self)
            except Exception:
                logger.exception("a round of steps failed")
                self._recover()
        if self.transfer.keeps:
            self._keep_last()

    def _keep_last(self) -> None:
        """What was running is of use to the next server."""
        try:
            self._end(self.scheduler.running, "cancelled")
            self.release()
        except Exception:
            logger.exception("what ran last is not kept")

    def _recover(self) -> None:
        """Reset until that succeeds: what fails it, out of memory for one, may pass."""
        while not self._orders.closing:
            try:
                self._reset()
                return
            except Exception:
                logger.exception("cannot start afresh, trying again")
                time.sleep(RESET_SECONDS)

    def _take_orders(self) -> None:
        """Wait until there is something to do."""
        self._orders.wait(lambda: self.has_work or self._shares.has_work, self._patience)
        arrived, cancelled, calls = self._orders.take()
        if self._busy_since is None:
            self._busy_since = time.monotonic()
        try:
            self._enqueue(arrived)
            if cancelled:
                self._cancel(cancelled)
        finally:
            for call in calls:
                call()

    def _enqueue(self, arrived: list[Arrival[Sequence]]) -> None:
        try:
            while arrived:
                self.scheduler.enqueue(arrived[0])
                self._counts["submitted"] += len(arrived.pop(0).choices)
        finally:
            if arrived:  # out of memory: nobody else knows of them
                tags = [sequence.tag for arrival in arrived for _, sequence in arrival.choices]
                self.scheduler.remove_waiting(lambda sequence: sequence.tag in tags)
                self._on_failure(tags, EngineFailure("the engine failed"))

    def _patience(self) -> float | None:
        """For how many seconds to wait for something to do; None: for good."""
        if self.scheduler.has_work:
            return LATE_SECONDS if self.transfer.awaits_bytes else None
        self._busy_since = None
        return IDLE_SECONDS if self.transfer.wants_idle else None

    @property
    def has_work(self) -> bool:
        """Whether a sequence runs or waits; not while all that run wait for what others bring. Engine thread."""
        if self.transfer.has_news:
            return True
        idles = self._idles and not (self._orders.woken or self.transfer.has_work or self._outputs.has_news)
        return self.scheduler.has_work and not idles

    def generate(self, *, alone: bool) -> float:
        """``shares.Streams.generate``. Engine thread."""
        self._idles = False
        if self._ended and len(self._ended) == self.scheduler.n_running and not self.scheduler.n_waiting:
            self._orders.rest(self._pace.sending_seconds)
        start = time.monotonic()
        copies = not self._unstepped or start < self._copies_end
        if not self._unstepped:
            self._copies_end = start + self._pace.copy_seconds
        self.transfer.settle()
        if copies:
            self.release(self._copies_end)
        for sequence in self.scheduler.admit():
            self._outputs.want(sequence, self.transfer.start(sequence))
            self._counts["admitted"] += 1
        self._look_ahead()
        for sequence, error in self._outputs.deliver():
            self._fail([sequence], error)
        if copies:
            self.transfer.restore(self._copies_end)
        if not self.scheduler.n_running:
            if not self.scheduler.has_work and time.monotonic() - self._worked_at >= IDLE_SECONDS:
                self.transfer.settle_idle()
            return 0.0
        self._worked_at = copied = time.monotonic()
        decides = self._ended or self.transfer.has_work or self.transfer.awaits_bytes
        status = self.runner.run(STEPS_PER_RUN if alone and not decides else 1)
        ran = time.monotonic() - copied
        self._unstepped = status == PAUSED and not self.runner.idled and self.runner.since_last_step() > ran
        self._settle(status)
        self.transfer.give_way(not self._idles)
        # copies are as much a pause of the streams as what others compute; without a step what it left is gone
        self.spare = 0.0 if self._unstepped else self.runner.spare - (time.monotonic() - start - ran)
        return ran

    def _look_ahead(self) -> None:
        """Have what those who run next will need made and brought while they wait."""
        waiting = self.scheduler.next_waiting(LOOKED_AHEAD)
        self.transfer.look_ahead(waiting)
        if self.encoder is not None:
            self._outputs.look_ahead(waiting, self.transfer.n_spared)

    def _settle(self, status: int) -> None:
        """Decide what ``Runner.run`` has left to decide."""
        if status in (FINISHED, SAVE_DUE):
            self.transfer.save_due()
        if status == FINISHED:
            self._end(self.runner.finished(), "completed")
        elif status == PAUSED:
            self._idles = self.runner.idled and self._is_idle()
        elif status == NO_ROOM:
            self._make_room()
        elif status != SAVE_DUE:
            # who has finished in this step has not failed
            self._end(self.runner.finished(), "completed")
            self._fail(self.runner.in_last_step() or self.scheduler.running, step_failure(status))

    def _is_idle(self) -> bool:
        """After a run: whether nobody can go on before bytes of a prefix or rows of media come. A wake may have kept it
        from a step."""
        if self._orders.was_woken or self._ended or self.transfer.has_work or self._outputs.has_news:
            return False
        if not (self.transfer.awaits_bytes or self._outputs.awaits):
            return False
        return all(
            sequence.phase in (PHASE_RESTORING, PHASE_FOLLOWING) or sequence.awaited is not None
            for sequence in self.scheduler.running
        )

    def _make_room(self) -> None:
        """The memory is full: the youngest starts over later; alone, a sequence cannot be helped."""
        if self._ended:
            self.release()
        elif (sequence := self.scheduler.preempt()) is not None:
            self.transfer.stop(sequence)
            self._counts["preempted"] += 1
        else:
            self._fail(self.scheduler.running, EngineFailure("the request does not fit the context's memory"))

    def _cancel(self, tags: set[int]) -> None:
        self._counts["cancelled"] += self.scheduler.remove_waiting(lambda sequence: sequence.tag in tags)
        cancelled = [sequence for sequence in self.scheduler.running if sequence.tag in tags]
        for sequence in cancelled:
            self.runner.halt(sequence)
        self._end(cancelled, "cancelled")
        self._look_ahead()

    def _end(self, sequences: list[Sequence], outcome: str) -> None:
        """They take no more steps, and are released once there is time."""
        known = {sequence for sequence, _ in self._ended}
        self._ended.extend((sequence, outcome) for sequence in sequences if sequence not in known)

    def _fail(self, sequences: list[Sequence], error: LlamafastError) -> None:
        for sequence in sequences:
            self._outputs.forget(sequence)
            # what a failed step left in memory is not worth keeping
            if self.scheduler.remove(sequence):
                self.transfer.discard(sequence)
        self._ended = deque(one for one in self._ended if one[0] not in sequences)
        self._counts["failed"] += len(sequences)
        self._on_failure([sequence.tag for sequence in sequences], error)

    def _reset(self) -> None:
        """After an error nobody foresaw: whoever runs is failed, memory starts afresh, whoever waits stays."""
        sequences = self.scheduler.running
        self.transfer.clear()
        self._outputs.clear()
        if self.embeddings is not None:
            self.embeddings.reset()
        self._ended.clear()
        self._idles = False
        self._on_failure([sequence.tag for sequence in sequences], EngineFailure("the engine failed"))
        self.scheduler.take_running()
        self._counts["failed"] += len(sequences)

    def release(self, deadline: float = math.inf) -> None:
        """Free the memory of sequences that have ended until the deadline, at least of one. Engine thread."""
        while self._ended:
            sequence, outcome = self._ended.popleft()
            self.scheduler.remove(sequence)
            self.transfer.stop(sequence)
            self._counts[outcome] += 1
            if time.monotonic() >= deadline:
                return
