"""What goes between a sequence's KV cells and host RAM: its prefix in when it starts, what it computed out."""

from __future__ import annotations

import logging
import time

from llamafast._core.runner import Runner
from llamafast._core.sequence import Sequence
from llamafast.engine.cache import Part, Parts, PrefixCache
from llamafast.engine.pace import Pace
from llamafast.engine.prefill import PrefillQueue

logger = logging.getLogger(__name__)


class KVTransfer:
    """Engine thread only, but for ``counts``. A copy that fails costs the time to compute what it held and no request.

    ``prefills`` computes long prompts apart; they come in like saved prefixes. Where the bytes of a part are still to
    come, whoever waits for them is passed over: nothing here ever waits.
    """

    def __init__(self, runner: Runner, cache: PrefixCache, pace: Pace, prefills: PrefillQueue | None = None) -> None:
        self.prefills = prefills
        self._pace = pace
        self._runner = runner
        self._cache = cache
        self._restores: dict[Sequence, Parts] = {}
        self._counts = {"lookup_failures": 0, "save_failures": 0, "restore_failures": 0}

    def counts(self) -> dict[str, int]:
        """Any thread."""
        return self._cache.counts() | self._counts

    @property
    def has_work(self) -> bool:
        """Whether something is to be done before the next step, or after it at the latest."""
        return (self.prefills is not None and self.prefills.has_work) or any(
            parts.saved is not None for parts in self._restores.values()
        )

    @property
    def awaits_bytes(self) -> bool:
        """Whether all there is to do here is to wait for the bytes of parts."""
        waits = bool(self._restores) or (self.prefills is not None and self.prefills.has_jobs)
        return waits and not self.has_work and not self.computes_apart

    @property
    def computes_apart(self) -> bool:
        """Whether a prompt is being computed apart, between two steps."""
        return self.prefills is not None and self.prefills.prefiller.working

    def start(self, sequence: Sequence) -> None:
        """Let a sequence run from the prefix that leaves the least to do: a running sequence's or a saved one.

        If what is left of its prompt takes long it is computed apart, where running sequences have nothing to share: so
        much that they would have shared may then be computed again.
        """
        if self.prefills is not None:
            self._runner.least_wait = self.prefills.least_rows(self._runner.row_seconds)
        shared, ready = self._runner.shareable(sequence)
        n_wanted = sequence.n_tokens - 1
        again = (n_wanted - shared) // self._pace.apart_again if self._pays_apart(sequence, n_wanted - shared) else 0
        # of what a running sequence is still to compute a saved prefix need only have half
        parts = self._find(sequence, max(0, (shared + ready) // 2 - again))
        n_found = parts[-1].stop if parts else 0
        apart = self._pays_apart(sequence, n_wanted - n_found) and shared - again <= n_found
        self._runner.add(sequence, n_found, apart)
        if parts:
            self._cache.use(parts)
            self._restores[sequence] = Parts(self._cache, parts)
        if apart and self.prefills is not None:
            self.prefills.add(sequence, parts)
        n_there = n_wanted if apart else n_found
        sequence.save_at = self._cache.next_save(n_there, sequence.n_prompt, sequence.checkpoints)

    def arrive(self) -> list[Sequence]:
        """Take over what has been computed apart; the sequences that have finished with their first token."""
        if self.prefills is None or not self.prefills.has_work:
            return []
        finished = []
        for sequence, parts, n_tokens, row in self.prefills.advance(self._runner.awaited):
            if n_tokens >= 0:
                self._runner.prefilled(sequence, n_tokens, row)
            if parts:
                self._restores.setdefault(sequence, Parts(self._cache)).take_over(parts)
            if sequence.finished:
                # what it does not need any more itself, others may wait for
                while self._runner.followers(sequence) and self._restore_next(sequence):
                    pass
                self._drop_restores(sequence)
                finished.append(sequence)
        return finished

    def restore(self, deadline: float) -> None:
        """Restore parts of prefixes until the deadline, at least one where any is here."""
        for sequence in list(self._restores):
            while self._restore_next(sequence):
                if time.monotonic() >= deadline:
                    return

    def _restore_next(self, sequence: Sequence) -> bool:
        """Give a sequence its next part; False where there is none, or not yet."""
        parts = self._restores.get(sequence)
        saved = parts.saved if parts else None
        if parts is None or saved is None:
            return False
        _, start, stop = parts.take()
        # what the Prefiller could not restore it has computed again: that is there already
        start = max(start, sequence.n_past) if self._runner.in_parts else start
        if start < stop and not self._restored(sequence, saved, start, stop):
            self._forget(sequence)
            sequence.save_at = self._cache.next_save(sequence.n_past, sequence.n_prompt, sequence.checkpoints)
        elif not parts:
            del self._restores[sequence]
        return True

    def _restored(self, sequence: Sequence, saved: bytes, start: int, stop: int) -> bool:
        """Whether a sequence has these tokens now; if not it computes what it has not."""
        if not saved:  # gone
            self._runner.prefilled(sequence, sequence.n_past)
            return False
        done = self._runner.restore(sequence, saved, start, stop)
        self._counts["restore_failures"] += not done
        return done

    def save_due(self) -> None:
        """Save a part of whoever is due, for a while and at least one; all where the next step loses the state."""
        deadline = time.monotonic() + self._pace.copy_seconds
        for sequence in self._runner.save_due():
            self._save(sequence)
            sequence.save_at = self._cache.next_save(sequence.n_past, sequence.n_prompt, sequence.checkpoints)
            if self._cache.cuts_anywhere and time.monotonic() >= deadline:
                return

    def stop(self, sequence: Sequence) -> None:
        """Free a sequence's memory; what it computed is kept if it may be of use."""
        self._save(sequence)
        self.discard(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Free a sequence's memory."""
        followers = self._runner.followers(sequence)
        self._forget(sequence)
        self._runner.remove(sequence)
        self._start_again([follower for follower in followers if not follower.finished])

    def _start_again(self, followers: list[Sequence]) -> None:
        """Whom they waited for has left: where nobody else computes what they need it may be better computed apart.

        All of them leave before the first one starts, so that it computes for the others what they have in common.
        """
        orphans: list[Sequence] = []
        for sequence in followers:
            leader = self._runner.leader(sequence)
            if (leader is None or leader in orphans) and self._starts_better(sequence):
                orphans.append(sequence)
        for sequence in reversed(orphans):
            self._forget(sequence)
            self._runner.withdraw(sequence)
        for sequence in orphans:
            self.start(sequence)

    def _starts_better(self, sequence: Sequence) -> bool:
        """Whether what is left of its prompt takes long, and little of what it has would be lost."""
        n_left = sequence.n_tokens - 1 - sequence.n_past
        if not self._pays_apart(sequence, n_left):
            return False
        self._save(sequence)
        again = n_left // self._pace.apart_again
        parts = self._find(sequence, max(0, sequence.n_past - again - 1))
        return (parts[-1].stop if parts else 0) >= sequence.n_past - again

    def forget_saved(self) -> int:
        """Forget the prefixes in host RAM; how many bytes that freed. Whoever is getting one computes the rest."""
        return self._cache.clear()

    def clear(self) -> None:
        """Empty the memory of all that run."""
        self._runner.clear()
        self._restores.clear()
        if self.prefills is not None:
            self.prefills.clear()
        self._cache.let_go_of_all()

    def _pays_apart(self, sequence: Sequence, n_rows: int) -> bool:
        if self.prefills is None or sequence.scores_prompt:
            return False
        return self.prefills.pays(n_rows, self._runner.row_seconds)

    def _find(self, sequence: Sequence, more_than: int) -> list[Part]:
        try:
            return self._cache.find(sequence.tokens(), sequence.salt, more_than)
        except Exception:
            logger.exception("cannot look up a prompt of %d tokens", sequence.n_prompt)
            self._counts["lookup_failures"] += 1
            return []

    def _drop_restores(self, sequence: Sequence) -> None:
        parts = self._restores.pop(sequence, None)
        if parts is not None:
            parts.clear()

    def _forget(self, sequence: Sequence) -> None:
        self._drop_restores(sequence)
        if self.prefills is not None:
            self.prefills.drop(sequence)

    def _save(self, sequence: Sequence) -> None:
        try:
            tokens = sequence.tokens()[: sequence.n_past]
            start, stop = self._cache.unsaved(tokens, sequence.salt)
            if stop:
                self._cache.put(tokens[:stop], sequence.salt, self._runner.save(sequence, start, stop))
        except Exception:
            logger.exception("cannot keep a prefix of %d tokens", sequence.n_past)
            self._counts["save_failures"] += 1
