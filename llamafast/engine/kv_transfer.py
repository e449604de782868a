"""What goes between a sequence's KV cells and host RAM: its prefix in when it starts, what it computed out."""

from __future__ import annotations

import logging
import time
from array import array
from collections import deque
from collections.abc import Collection, Iterable
from itertools import islice

from llamafast._core.runner import Runner
from llamafast._core.sequence import Sequence
from llamafast.engine.cache import Part, PrefixCache
from llamafast.engine.kv_log import RUNNING, KVLog
from llamafast.engine.pace import Pace

logger = logging.getLogger(__name__)

# So many parts are asked for before they are needed.
ASKED_AT_ONCE = 16


class Parts:
    """Parts that somebody is to get, in order. Their states are held until they are taken or the parts are cleared."""

    def __init__(self, cache: PrefixCache, parts: Iterable[Part]) -> None:
        self._cache = cache
        self._parts = deque(parts)
        for part in self._parts:
            cache.hold(part.state)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def saved(self) -> bytes | memoryview | None:
        """The bytes of the first one, as ``PrefixCache.saved`` has them."""
        return self._cache.saved(self._parts[0].state)

    def ask(self) -> None:
        """Have the bytes of the next ones brought."""
        for part in islice(self._parts, ASKED_AT_ONCE):
            self._cache.ask(part.state)

    @property
    def first(self) -> Part:
        return self._parts[0]

    def take(self) -> None:
        """Let go of the first one."""
        self._cache.let_go(self._parts.popleft().state)

    def clear(self) -> None:
        while self._parts:
            self.take()


class KVTransfer:
    """Engine thread only, but for ``counts``. A copy that fails costs the time to compute what it held and no request.

    Where the bytes of a part are still to come, whoever waits for them is passed over: nothing here ever waits.
    """

    def __init__(self, runner: Runner, cache: PrefixCache, pace: Pace, log: KVLog | None = None) -> None:
        self._pace = pace
        self._log = cache.log = log
        self._runner = runner
        self._cache = cache
        self._restores: dict[Sequence, Parts] = {}
        self._ahead: dict[Sequence, Parts] = {}
        self._counts = {"lookup_failures": 0, "save_failures": 0, "restore_failures": 0}

    def counts(self) -> dict[str, float]:
        """Any thread."""
        return self._cache.counts() | self._counts

    @property
    def has_work(self) -> bool:
        """Whether something is to be done before the next step, or after it at the latest."""
        return any(parts.saved is not None for parts in self._restores.values())

    @property
    def has_news(self) -> bool:
        """Whether bytes have come, or other work of the cache's was done. Any thread."""
        return self._cache.has_news

    @property
    def wants_idle(self) -> bool:
        """Whether there is something to do while nobody computes."""
        return self._cache.wants_idle

    @property
    def awaits_bytes(self) -> bool:
        """Whether all there is to do here is to wait for the bytes of parts."""
        return bool(self._restores) and not self.has_work

    @property
    def keeps(self) -> bool:
        """Whether what is saved outlives the process."""
        return self._cache.brings

    def give_way(self, beside: bool) -> None:
        """Whether somebody computes while bytes are brought."""
        self._cache.give_way(beside)

    def settle(self) -> None:
        """Take note of what threads have brought and written, for a while."""
        self._cache.settle(self._pace.copy_seconds)

    def settle_idle(self) -> None:
        """Nobody computes."""
        self._cache.settle_idle()

    def look_ahead(self, waiting: Collection[Sequence]) -> None:
        """Have the saved prefixes brought of those who are to run next, and of nobody else who waits."""
        if not self._cache.brings:
            return
        for sequence in waiting:
            if sequence not in self._ahead:
                parts = self._found(sequence)[0]
                away = any(part.state.saved is None for part in parts)
                self._ahead[sequence] = Parts(self._cache, parts if away else [])
            self._ahead[sequence].ask()
        for sequence in [sequence for sequence in self._ahead if sequence not in waiting]:
            self._ahead.pop(sequence).clear()

    def n_spared(self, sequence: Sequence) -> int:
        """How many of its tokens a sequence that waits would not have to compute, were it to run now."""
        parts, shared = self._found(sequence)
        return max(parts[-1].stop if parts else 0, shared)

    def start(self, sequence: Sequence) -> int:
        """Let a sequence run from the prefix that leaves the least to do: a running sequence's or a saved one. How many
        tokens that probably spares."""
        parts, shared = self._found(sequence)
        n_found = parts[-1].stop if parts else 0
        self._runner.add(sequence, n_found)
        if self._log is not None and not sequence.salt:
            # what it will have: others that come meanwhile wait for it
            self._log.hold(RUNNING, sequence, _first_salts(sequence), 0)
        if parts:
            self._cache.use(parts)
            self._restores[sequence] = Parts(self._cache, parts)
            self._restores[sequence].ask()
        if (ahead := self._ahead.pop(sequence, None)) is not None:
            ahead.clear()
        self._save_next(sequence, n_found)
        return max(n_found, shared)

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
        restored = self._restored(sequence, saved, parts.first)
        parts.take()
        if not restored:
            self._drop_restores(sequence)
            self._save_next(sequence, sequence.n_past)
        elif not parts:
            del self._restores[sequence]
        else:
            parts.ask()
        return True

    def _restored(self, sequence: Sequence, saved: bytes | memoryview, part: Part) -> bool:
        """Whether a sequence has these tokens now; if not it computes what it has not."""
        if not saved:  # gone
            self._runner.forgo(sequence)
            return False
        # a part comes whole before it is cut, through cells of its own
        has_room = self._runner.total_cells - self._runner.n_cells >= part.state.stop - part.state.start
        done = self._runner.restore(sequence, saved, part.start, part.stop)
        if done:
            self._cache.restored(part.state, part.stop - part.start)
        else:
            self._counts["restore_failures"] += 1
            if has_room:
                self._cache.refused(part.state)
        return done

    def save_due(self) -> None:
        """Save a part of whoever is due, for a while and at least one; all where the next step loses the state."""
        deadline = time.monotonic() + self._pace.copy_seconds
        for sequence in self._runner.save_due():
            self._save(sequence)
            self._save_next(sequence, sequence.n_past)
            if self._cache.cuts_anywhere and time.monotonic() >= deadline:
                return

    def stop(self, sequence: Sequence) -> None:
        """Free a sequence's memory; what it computed is kept if it may be of use."""
        if not (sequence.private and sequence.finished):
            self._save(sequence)
        self.discard(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Free a sequence's memory."""
        self._drop_restores(sequence)
        self._runner.remove(sequence)
        if self._log is not None:
            self._log.drop(RUNNING, sequence)

    def forget_saved(self) -> int:
        """Forget the prefixes in host RAM; how many bytes that freed. Whoever is getting one computes the rest. Answers
        are drafted from no more."""
        self._runner.forget_answers()
        return self._cache.clear()

    def forget_adapter(self, digest: bytes) -> None:
        """Forget the prefixes in host RAM that were computed with it, and that nobody is getting."""
        self._cache.forget(lambda salt: digest in salt)

    def clear(self) -> None:
        """Empty the memory of all that run."""
        self._runner.clear()
        if self._log is not None:
            self._log.drop(RUNNING, None)
        self._restores.clear()
        self._ahead.clear()
        self._cache.let_go_of_all()

    def close(self, seconds: float) -> None:
        """Keep what outlives the process, for so long at most. Any thread, once the engine thread has ended."""
        self._cache.close(seconds)

    def _save_next(self, sequence: Sequence, n_past: int) -> None:
        """Say when a sequence that has ``n_past`` tokens in memory is to be saved next."""
        if not sequence.private:
            invoked_at = 0 if sequence.invocation is None else sequence.invocation.at
            at = self._cache.next_save(n_past, sequence.n_prompt, sequence.checkpoints, invoked_at)
            sequence.save_at = sequence.cut_behind(at)

    def _found(self, sequence: Sequence) -> tuple[list[Part], int]:
        """The parts of a saved prefix that are worth more than what a running sequence shares, and how much that is."""
        shared, ready = self._runner.shareable(sequence)
        # of what a running sequence is still to compute a saved prefix need only have half
        return self._find(sequence, (shared + ready) // 2), shared

    def _find(self, sequence: Sequence, more_than: int) -> list[Part]:
        try:
            # a row that gives log probabilities has to be computed
            tokens = sequence.tokens()[: sequence.n_scored if sequence.n_scored < sequence.n_prompt else None]
            found = self._cache.find(tokens, sequence.salt, more_than, sequence.invocation)
            # two media may have a few ids in common by chance
            while found and (edge := sequence.cut_before(found[-1].stop)) < found[-1].stop:
                found = self._cache.find(tokens[: edge + 1], sequence.salt, more_than, sequence.invocation)
            return found
        except Exception:
            logger.exception("cannot look up a prompt of %d tokens", sequence.n_prompt)
            self._counts["lookup_failures"] += 1
            return []

    def _drop_restores(self, sequence: Sequence) -> None:
        parts = self._restores.pop(sequence, None)
        if parts is not None:
            parts.clear()

    def _save(self, sequence: Sequence) -> None:
        try:
            end = sequence.cut_before(sequence.n_past)
            if end < sequence.n_past > self._cache.n_cuttable or (end < sequence.n_past and not self._cache.in_parts):
                return  # it stands in a span of media, and its state cannot be cut
            tokens = sequence.tokens()[:end]
            # what is before an invocation, and what is behind it
            while self._save_part(sequence, tokens):
                pass
        except Exception:
            logger.exception("cannot keep a prefix of %d tokens", sequence.n_past)
            self._counts["save_failures"] += 1

    def _save_part(self, sequence: Sequence, tokens: array[int]) -> bool:
        """Keep the next part of ``tokens``; whether it ends before an invocation, and more are to be kept."""
        invocation = sequence.invocation
        start, stop = self._cache.unsaved(tokens, sequence.salt, invocation)
        stop = sequence.cut_behind(stop)
        if not stop or sequence.cut_before(start) != start:
            return False
        self._cache.put(tokens[:stop], sequence.salt, self._runner.save(sequence, start, stop), invocation)
        return invocation is not None and stop == invocation.at < len(tokens)


def _first_salts(sequence: Sequence) -> array[int]:
    """Its tokens that are of the salt with which it begins."""
    tokens = sequence.tokens()
    return tokens if sequence.invocation is None else tokens[: sequence.invocation.at]
