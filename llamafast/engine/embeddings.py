"""Embedding requests between the event loop and the Embedder."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable

from llamafast._core.embedder import Embedder
from llamafast._core.inputs import Input
from llamafast._core.vocab import Vocab
from llamafast.engine.adapters import AdapterGroup
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.step_failure import step_failure
from llamafast.engine.types import ANYBODY, Tenant
from llamafast.errors import ContextLengthExceeded, EngineFailure, InvalidRequest, LlamafastError


def inputs_of(plan: EmbeddingPlan, vocab: Vocab, max_tokens: int, group: AdapterGroup) -> list[Input]:
    """Raises ContextLengthExceeded or InvalidRequest for an input that the Embedder would not take."""
    longest = max(map(len, plan.inputs))
    if longest > max_tokens:
        raise ContextLengthExceeded(max_tokens, f"{longest} tokens", param="input")
    try:
        return [
            Input(
                vocab,
                tokens,
                dimensions=plan.dimensions,
                normalize=plan.normalize,
                group=group.number,
                adapters=group,
            )
            for tokens in plan.inputs
        ]
    except ValueError as error:
        raise InvalidRequest(str(error), param="input") from error


class EmbeddingRequest:
    """The inputs of one request and the caller's ``done``, which belongs to the event loop.

    ``closed`` tells the engine thread that nobody wants the rest any more.
    """

    def __init__(
        self,
        inputs: list[Input],
        done: asyncio.Future[None],
        tenant: Tenant = ANYBODY,
        adapter_ids: tuple[int, ...] = (),
    ) -> None:
        self.inputs = inputs
        self.done = done
        self.tenant = tenant
        self.adapter_ids = adapter_ids
        self.closed = False
        self.passed = False  # others went on while there was no room for its group
        self.n_started = 0
        self.n_finished = 0

    @property
    def has_begun(self) -> bool:
        """Whether any of its inputs has been given to the Embedder. Any thread."""
        return self.n_started > 0

    @property
    def n_waiting(self) -> int:
        """1 while any of its inputs waits. Any thread."""
        return int(self.n_started < len(self.inputs))

    def settle(self, error: LlamafastError | None) -> None:
        """Event loop: end the wait."""
        self.closed = True
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


Settled = list[tuple[EmbeddingRequest, LlamafastError | None]]


def settle(settled: Settled) -> None:
    """Event loop."""
    for request, error in settled:
        request.settle(error)


class EmbeddingQueue:
    """All waiting requests, each of which gives one input in turn, and the Embedder that computes them.

    A request with thousands of inputs so delays one with a single input by little. While as many inputs of a tenant as
    it may run at once are in the Embedder its requests keep their turn, and others go on. Inputs of at most
    ``max_groups`` groups of adapters run at once; a request that waits for that is passed once.

    Engine thread only, but for ``enqueue``, ``n_waiting`` and ``counts``; ``on_settled`` gets everything a step has
    ended, in one call.
    """

    def __init__(self, embedder: Embedder, on_settled: Callable[[Settled], None], max_groups: int = 1) -> None:
        self.embedder = embedder
        self._max_groups = max_groups
        self._on_settled = on_settled
        self._waiting: deque[EmbeddingRequest] = deque()
        self._running: dict[Input, EmbeddingRequest] = {}
        self._n_enqueued = 0  # written by the event loop
        self._n_left = 0  # written by the engine thread

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def n_waiting(self) -> int:
        """Requests with inputs that have not been started. Any thread."""
        return self._n_enqueued - self._n_left

    def enqueue(self, request: EmbeddingRequest) -> None:
        """Event loop. The inputs are no longer than ``embedder.max_tokens``."""
        self._n_enqueued += 1
        self._waiting.append(request)

    def step(self, seconds: float) -> None:
        """Compute one batch that takes about ``seconds``."""
        self._forget_closed()
        self._admit()
        settled: Settled = []
        code = self.embedder.step(seconds)
        if code != 0:
            settled += self._fail_running(step_failure(code))
        for input in self.embedder.take_finished():
            request = self._running.pop(input)
            request.n_finished += 1
            if input.vectors is None:
                request.closed = True
                settled.append((request, EngineFailure("the model gave a vector that is not finite")))
            elif request.n_finished == len(request.inputs):
                settled.append((request, None))
        if settled:
            self._on_settled(settled)

    def reset(self) -> None:
        """Fail what runs; memory starts afresh, what waits stays."""
        self._on_settled(self._fail_running(EngineFailure("the engine failed")))

    def counts(self) -> dict[str, float]:
        """The series of embeddings. Any thread."""
        return self.embedder.counts()

    def _forget_closed(self) -> None:
        for input in [input for input, request in self._running.items() if request.closed]:
            del self._running[input]
            self.embedder.remove(input)

    def _admit(self) -> None:
        n_running = Counter(request.tenant.name for request in self._running.values())
        groups = {input.group for input in self._running}
        held: list[EmbeddingRequest] = []
        try:
            while self._waiting:
                request = self._waiting[0]
                bound = request.tenant.max_running
                if request.closed:
                    self._waiting.popleft()
                    self._n_left += 1
                    continue
                if bound is not None and n_running[request.tenant.name] >= bound:
                    held.append(self._waiting.popleft())
                    continue
                input = request.inputs[request.n_started]
                if not self.embedder.fits(input):
                    return
                if len(groups | {input.group}) > self._max_groups:
                    if request.passed:
                        return
                    request.passed = True
                    held.append(self._waiting.popleft())
                    continue
                groups.add(input.group)
                request.passed = False
                self._waiting.popleft()
                self.embedder.add(input)
                self._running[input] = request
                n_running[request.tenant.name] += 1
                request.n_started += 1
                if request.n_started < len(request.inputs):
                    self._waiting.append(request)
                else:
                    self._n_left += 1
        finally:
            self._waiting.extendleft(reversed(held))

    def _fail_running(self, error: EngineFailure) -> Settled:
        requests = set(self._running.values())
        self._running.clear()
        self.embedder.clear()
        for request in requests:
            request.closed = True
        return [(request, error) for request in requests]
