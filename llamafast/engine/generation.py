"""The caller's end of a request: the events of its answers as they come, and its cancel."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any

from llamafast._core.sequence import Sequence
from llamafast.engine.media import MediaKind
from llamafast.engine.slot_info import SlotInfo
from llamafast.engine.types import ANYBODY, Alternatives, Event, FinishReason, Tenant, TokenLogprob
from llamafast.errors import LlamafastError

# of the core's log probabilities: a token id and its float
PAIR = Struct("if")


class Generation:
    """An async iterator of batches of Events, fed on the event loop by the Engine.

    Events that pile up while the consumer is away are merged per choice, so a slow consumer costs memory for text, not
    for events, and one wake-up catches it up. One consumer at a time.
    """

    def __init__(
        self,
        n_choices: int,
        prompt_tokens: int,
        cancel: Callable[[Generation], None],
        on_finished: Callable[[Generation], None],
        choices_per_prompt: int = 1,
        tenant: Tenant = ANYBODY,
    ) -> None:
        self.tenant = tenant
        self.sequences: list[Sequence] = []
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = self.processed_tokens = 0
        self.top_logprobs = 0
        self.scored = False  # whether log probabilities of its prompts are told
        self.stops: tuple[str | int, ...] = ()
        self.finish_reasons: set[FinishReason] = set()
        self.adapter_ids: tuple[int, ...] = ()
        self.media_tokens: dict[MediaKind, int] = {}
        self.prediction_length = 0
        self.submitted = time.monotonic()
        self._first_token: float | None = None
        self._choices_per_prompt = choices_per_prompt
        self._cached: dict[int, int] = {}
        self._processed: dict[int, int] = {}
        self.n_choices = self._unfinished = n_choices
        self._pending: dict[int, Event] = {}
        self._held: dict[int, list[tuple[Any, ...]]] = {}  # of choices whose prompt has not been told yet
        self._told_prompts: set[int] = set()
        self._error: LlamafastError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._cancel = cancel
        self._on_finished = on_finished

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that did not have to be computed; like ``prompt_tokens`` each prompt counts once."""
        return sum(self._cached.values())

    @property
    def predicted_tokens(self) -> tuple[int, int] | None:
        """Tokens of the prediction that came, and that did not, of all choices; None where there was none."""
        if not self.prediction_length:
            return None
        accepted = sum(sequence.n_predicted for sequence in self.sequences)
        return accepted, self.prediction_length * self.n_choices - accepted

    @property
    def drafted_tokens(self) -> tuple[int, int]:
        """Drafted tokens that were decoded, and those of them that came, of all choices."""
        return sum(s.n_drafted for s in self.sequences), sum(s.n_accepted for s in self.sequences)

    def scores(self, index: int) -> bool:
        """Whether choice ``index`` is the one that its prompt is scored for."""
        return self.scored and index % self._choices_per_prompt == 0

    @property
    def queue_seconds(self) -> float | None:
        """How long its choices waited before they ran, the longest wait; None while one waits."""
        longest = 0.0
        for sequence in self.sequences:
            if (waited := sequence.queue_seconds) is None:
                return None
            longest = max(longest, waited)
        return longest

    @property
    def first_token_seconds(self) -> float | None:
        """From submit to the arrival of the first token; None before."""
        return None if self._first_token is None else self._first_token - self.submitted

    @property
    def has_begun(self) -> bool:
        """Whether a token of any of its choices was computed or taken from elsewhere."""
        return any(sequence.queue_seconds is not None for sequence in self.sequences)

    @property
    def n_waiting(self) -> int:
        """Its choices of which that cannot be said yet."""
        n_begun = sum(sequence.queue_seconds is not None for sequence in self.sequences)
        return self.n_choices - n_begun

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self._unfinished == 0 or self._error is not None

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._pending:
            if self._error is not None:
                raise self._error
            if self._unfinished == 0:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events = list(self._pending.values())
        self._pending.clear()
        return events

    async def begin(self, seconds: float) -> None:
        """Return once something is known of an answer, or after so long. Raises the error that ended the request."""
        if not (self._pending or self.finished):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait((self._waiter,), timeout=seconds)
            finally:
                self._waiter = None
        if self._error is not None and not self._pending:
            raise self._error

    def cancel(self) -> None:
        """Stop generating; idempotent, a no-op once finished."""
        if not self.finished:
            self._cancel(self)

    def push(
        self,
        index: int,
        text: str,
        n_tokens: int,
        finish_reason: FinishReason | None,
        n_cached: int = 0,
        logprobs: list[TokenLogprob] | None = None,
        prompt_logprobs: list[TokenLogprob] | None = None,
        matched_stop: int = -1,
        ids: bytes = b"",
        n_processed: int = 0,
    ) -> None:
        """Engine side: something became known of choice ``index``; ``matched_stop`` counts ``stops``, ``ids`` are the
        int32 of its tokens, ``n_processed`` tokens of its prompt are in memory.

        A prompt is scored for the first of its choices; the others are told the same, and nothing before that is
        complete."""
        if self.scored and self._choices_per_prompt > 1:
            first = index - index % self._choices_per_prompt
            if index != first and first not in self._told_prompts:
                told = (index, text, n_tokens, finish_reason, n_cached, logprobs, None, matched_stop, ids, n_processed)
                self._held.setdefault(first, []).append(told)
                return
            if index == first and prompt_logprobs:
                for other in range(first + 1, first + self._choices_per_prompt):
                    beside = self._pending.setdefault(other, Event(other, "", 0))
                    beside.prompt_logprobs = (beside.prompt_logprobs or []) + prompt_logprobs
            if index == first and first not in self._told_prompts and (n_tokens or finish_reason is not None):
                self._told_prompts.add(first)
                for told in self._held.pop(first, ()):
                    self.push(*told)
        if not self.completion_tokens and n_tokens:
            self._first_token = time.monotonic()
        self.completion_tokens += n_tokens
        if index % self._choices_per_prompt == 0:
            self._cached[index] = n_cached
        if self.processed_tokens < self.prompt_tokens:
            self._process(index // self._choices_per_prompt, n_processed)
        event = self._pending.get(index)
        if event is None:
            self._pending[index] = Event(index, text, n_tokens, finish_reason, logprobs, prompt_logprobs)
        else:
            event.text += text
            event.n_tokens += n_tokens
            event.finish_reason = finish_reason
            if logprobs:
                event.logprobs = (event.logprobs or []) + logprobs
            if prompt_logprobs:
                event.prompt_logprobs = (event.prompt_logprobs or []) + prompt_logprobs
        if ids:
            event = self._pending[index]
            event.token_ids = (event.token_ids or []) + array("i", ids).tolist()
        if finish_reason is not None:
            if matched_stop >= 0:
                self._pending[index].matched_stop = self.stops[matched_stop]
            self._unfinished -= 1
            self.finish_reasons.add(finish_reason)
            if not self._unfinished:
                self._on_finished(self)
        self._wake()

    def _process(self, prompt: int, n_processed: int) -> None:
        """Of the choices of a prompt the one counts that is furthest, also once it has given way."""
        if (more := n_processed - self._processed.get(prompt, 0)) > 0:
            self._processed[prompt] = n_processed
            self.processed_tokens += more

    def fail(self, error: LlamafastError) -> None:
        """Engine side: the request ends with an error. What was pushed before is still delivered."""
        if not self.finished:
            self._error = error
            self._wake()

    def abort(self, error: LlamafastError) -> None:
        """Engine side: ``cancel`` and ``fail``."""
        self.cancel()
        self.fail(error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def slots_of(generations: Iterable[Generation]) -> list[SlotInfo]:
    """Those of their choices that run at this moment. Event loop; the engine thread goes on meanwhile."""
    running = (s for one in dict.fromkeys(generations) for s in one.sequences if s.seq_id >= 0 and not s.finished)
    return [_slot(sequence) for sequence in running]


def _slot(sequence: Sequence) -> SlotInfo:
    n_memory, n_tokens, n_prompt = sequence.n_past, sequence.n_tokens, sequence.n_prompt
    return SlotInfo(
        slot=sequence.seq_id,
        task=sequence.tag,
        n_prompt=n_prompt,
        n_computed=max(0, min(n_memory, n_prompt) - sequence.n_cached),
        n_cached=sequence.n_cached,
        n_memory=n_memory,
        n_generated=max(0, n_tokens - n_prompt),
        n_left=max(0, sequence.n_max - n_tokens),
    )


def token_logprobs(entries: bytes, n_top: int, *, ranked: bool) -> list[TokenLogprob]:
    """What the core wrote: for every token 1 + n_top pairs of int32 and float32; ids below 0 are no tokens. Where they
    are ``ranked`` another one, whose integer is the token's rank."""
    size = PAIR.size * (1 + n_top + ranked)
    end = PAIR.size * (1 + n_top)
    tokens: list[TokenLogprob] = []
    for at in range(0, len(entries), size):
        token, logprob = PAIR.unpack_from(entries, at)
        rank, _ = PAIR.unpack_from(entries, at + end) if ranked else (0, 0.0)
        tokens.append(TokenLogprob(token, logprob, Alternatives(entries[at + PAIR.size : at + end]), rank))
    return tokens
