"""The engine's door: submit a Plan, get a Generation; one thread steps behind it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from time import monotonic

from msgspec.structs import asdict, replace

from llamafast._core.context import Context
from llamafast._core.drafter import Drafter
from llamafast._core.embedder import Embedder
from llamafast._core.outbox import Outbox
from llamafast._core.runner import Runner
from llamafast._core.sequence import FINISH_LENGTH, FINISH_NONE, FINISH_REFUSED, FINISH_STOP, Sequence
from llamafast._core.vocab import Vocab
from llamafast.config import Config
from llamafast.engine.adapter_contexts import AdapterContexts
from llamafast.engine.adapter_files import AdapterFiles
from llamafast.engine.adapter_info import AdaptersPort
from llamafast.engine.adapters import Adapters, LoadedAdapter
from llamafast.engine.between_steps import BetweenSteps
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.embedding_info import EmbeddingPlan
from llamafast.engine.embeddings import EmbeddingQueue, EmbeddingRequest, Settled, inputs_of, settle
from llamafast.engine.generation import Generation, slots_of, token_logprobs
from llamafast.engine.keeping import cache_over, store_in
from llamafast.engine.kv_log import KVLog
from llamafast.engine.kv_transfer import KVTransfer
from llamafast.engine.masking import MaskerThreads
from llamafast.engine.media import MediaEncoder
from llamafast.engine.pace import Pace
from llamafast.engine.queue_limits import QueueLimits
from llamafast.engine.request_sizes import RequestSizes
from llamafast.engine.scheduler import Arrival, Scheduler
from llamafast.engine.seen import read_activity
from llamafast.engine.sequence_planner import Choices, SequencePlanner
from llamafast.engine.slot_info import SlotInfo
from llamafast.engine.types import ANYBODY, FinishReason, Histogram, ModelInfo, Plan, Tenant, Tokenizer
from llamafast.engine.worker import Worker
from llamafast.errors import (
    DoesNotEmbed,
    DoesNotGenerate,
    EngineFailure,
    InvalidRequest,
    LlamafastError,
    ShuttingDown,
)

logger = logging.getLogger(__name__)

# what the core's ways to finish mean on the wire
FINISH_REASONS: dict[int, FinishReason | None] = {FINISH_NONE: None, FINISH_STOP: "stop", FINISH_LENGTH: "length"}

# Seconds that keeping prefixes may take at the end.
LEAST_KEEPING, MOST_KEEPING = 1.0, 5.0


class Engine:
    """Serves one Context. Everything here runs on the event loop; only the Worker steps.

    Results come back through the Outbox: the pipe's reader is registered with the loop, and one wake-up hands every
    stream what the steps since the last one produced.
    """

    def __init__(
        self,
        context: Context,
        vocab: Vocab,
        info: ModelInfo,
        config: Config,
        *,
        pace: Pace,
        cache_bytes: int,
        embedder: Embedder | None,
        encoder: MediaEncoder | None = None,
        disk: DiskFolder | None = None,
        adapters: Iterable[LoadedAdapter] = (),
        adapter_files: AdapterFiles | None = None,
        drafter: Drafter | None = None,
        kv_log: KVLog | None = None,
    ) -> None:
        self.tokenizer: Tokenizer = vocab
        self._vocab = vocab
        self._pace = pace
        self._priorities = config.scheduler.priorities
        self._live: dict[int, tuple[Generation, int]] = {}
        self._between_steps = BetweenSteps(self._order)
        contexts = {context} if embedder is None else {context, embedder.context}
        home = None
        if adapter_files is not None:
            home = AdapterContexts(contexts, adapter_files, self._between_steps, self._forget_adapter)
        self._adapters = Adapters(adapters, home, (info.id, *info.aliases), lambda: self._limits.there)
        self.adapters: AdaptersPort = self._adapters
        self.info = replace(info, adapters=self._adapters.names)
        self._sequences = SequencePlanner(vocab, info)
        self._making: dict[Generation, Choices] = {}
        self._requests = count()
        self._limits = QueueLimits(config.server)
        self._sizes = RequestSizes(self._limits.end)
        self._ends_at: float | None = None
        self._waking = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._outbox = Outbox(self._wake_write)
        runner = Runner(context, vocab, self._outbox, pace=asdict(pace), drafter=drafter)
        unified = context.n_ctx_seq == context.n_ctx
        scheduler: Scheduler[Sequence] = Scheduler(
            n_seq_max=context.n_seq_max,
            n_cells=context.n_ctx if unified and context.n_seq_max > 1 else None,
            max_groups=config.model.max_loras,
        )
        self._masking = MaskerThreads(runner.masker)
        self.disk = store_in(disk, config.disk_cache, lambda: self._worker.wake())
        cache = cache_over(self.disk, runner, cache_bytes, config.disk_cache)
        self._embeddings = None
        if embedder is not None:
            n_groups = config.model.max_loras if embedder.context.mixes else 1
            self._embeddings = EmbeddingQueue(embedder, self._settle_from_worker, n_groups)
        self._transfer = transfer = KVTransfer(runner, cache, pace, kv_log)
        self.activity = lambda: read_activity(runner, scheduler)
        self._worker = Worker(runner, scheduler, transfer, self._fail_from_worker, pace, self._embeddings, encoder)

    def start(self) -> None:
        """Begin to step. Call on the event loop that will submit."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._wake_read, self._deliver)
        self._worker.start()
        if self.disk is not None:
            # in a turn of its own: its threads keep off the CPUs that compute as the event loop does, not as the worker
            self._loop.call_soon(self.disk.start)

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Refuse new work, give running work ``drain_seconds`` to finish, cancel the rest, stop the thread. What was
        computed has what is left of that time to reach the disk, between LEAST_KEEPING and MOST_KEEPING."""
        self._ends_at = monotonic() + drain_seconds if self._ends_at is None else self._ends_at
        with suppress(TimeoutError):
            await asyncio.wait_for(self._limits.empty.wait(), self._ends_at - monotonic())
        shutdown = ShuttingDown()
        self._limits.abort_all(shutdown)
        self._between_steps.close(shutdown)
        if self._worker.encoder is not None:
            await asyncio.to_thread(self._worker.encoder.close)
        await asyncio.to_thread(self._worker.close, min(max(self._ends_at - monotonic(), LEAST_KEEPING), MOST_KEEPING))
        await asyncio.to_thread(self._masking.close)
        self._loop.remove_reader(self._wake_read)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def hurry(self) -> None:
        """End what runs now, however long ``close``, which is called before or after this, would give it."""
        self._ends_at = monotonic()
        self._limits.abort_all(ShuttingDown())

    async def prepare(self, plan: Plan) -> None:
        """Do in a thread what ``submit`` would hold up the event loop for. Raises InvalidRequest."""
        if not self._sequences.is_prepared(plan.sampling):
            await asyncio.to_thread(self._sequences.prepare, plan.sampling)

    def submit(self, plan: Plan, tenant: Tenant = ANYBODY) -> Generation:
        """Queue a Plan; its first choices at once, the others in the next turns of the event loop if they are many.

        Raises QueueFull, EngineUnavailable, ContextLengthExceeded or InvalidRequest; then nothing was queued.
        """
        if not self.info.generates:
            raise DoesNotGenerate(ranks=self.info.ranks)
        n_choices = len(plan.prompts) * plan.n
        self._check_open(tenant, n_choices)
        if plan.priority and not self._priorities:
            raise InvalidRequest("`priority` is not enabled on this server", param="priority")
        if plan.matcher is not None:
            self._masking.start()
        n_tokens = sum(len(prompt) for prompt in plan.prompts)
        generation = Generation(n_choices, n_tokens, self._cancel, self._sizes.finished, plan.n, tenant)
        generation.top_logprobs, generation.scored = plan.top_logprobs or 0, plan.prompt_logprobs
        generation.stops = (*plan.stop, *plan.stop_token_ids)
        generation.media_tokens, generation.prediction_length = plan.media_tokens(), len(plan.prediction)
        applied = self._adapters.applied(plan.prompts, plan.model, plan.lora)
        generation.adapter_ids = tuple({id for one in applied for id in one.group.ids})
        sequences = enumerate(self._sequences.of(plan, tenant, applied))
        self._sizes.asked(plan.n)
        priority = tenant.priority, plan.priority
        self._limits.begin(generation, generation.abort)
        self._adapters.count(generation.adapter_ids)
        self._make(generation, Choices(next(self._requests), n_choices, tenant, priority, sequences))
        return generation

    def _make(self, generation: Generation, choices: Choices) -> None:
        """Queue as many of a request's sequences as this turn has time to make, the others in the next turns."""
        until = monotonic() + self._pace.making_seconds
        made: list[tuple[int, Sequence]] = []
        try:
            for index, sequence in choices.sequences:
                choices.n_left -= 1
                if sequence is None:
                    generation.push(index, "", 0, "length")
                else:
                    generation.sequences.append(sequence)
                    self._live[sequence.tag] = (generation, index)
                    made.append((index, sequence))
                if monotonic() >= until:
                    choices.next_turn = self._loop.call_soon(self._make_more, generation, choices)
                    self._making[generation] = choices
                    break
        except BaseException:
            self._cancel(generation)
            raise
        self._worker.enqueue(Arrival(choices.request, made, choices.priority, choices.tenant))
        self._wake_worker()

    def _make_more(self, generation: Generation, choices: Choices) -> None:
        del self._making[generation]
        try:
            self._make(generation, choices)
        except Exception:
            logger.exception("the choices of a request could not be made")
            generation.fail(EngineFailure("the engine failed"))

    async def embed(self, plan: EmbeddingPlan, tenant: Tenant = ANYBODY) -> list[bytes]:
        """Queue a plan's inputs and wait for their vectors. Cancelling the caller's task ends the work.

        Raises what ``submit`` raises, and EngineFailure.
        """
        info = self.info.embedding
        if info is None or self._embeddings is None:
            raise DoesNotEmbed
        self._check_open(tenant, 1)
        group = self._adapters.group(plan.model, plan.lora)
        inputs = inputs_of(plan, self._vocab, info.max_tokens, group)
        request = EmbeddingRequest(inputs, self._loop.create_future(), tenant, group.ids)
        self._limits.begin(request, request.settle)
        self._adapters.count(group.ids)
        self._embeddings.enqueue(request)
        self._wake_worker()
        try:
            await request.done
        finally:
            request.closed = True
            self._limits.end(request)
        return [input.vectors or b"" for input in request.inputs]

    def retry_after(self) -> float:
        """Seconds after which half of the requests that wait now will have begun, by the rate of the last ones."""
        return self._limits.retry_after(self._worker.n_waiting_requests)

    async def reset_prefix_cache(self) -> int:
        """Forget what finished requests computed; how many bytes that freed. Raises EngineUnavailable."""
        return await self._between_steps.do(self._transfer.forget_saved)

    def _forget_adapter(self, digest: bytes) -> None:
        self._worker.release()  # what has just ended would be kept behind this
        self._transfer.forget_adapter(digest)

    def _order(self, call: Callable[[], object]) -> None:
        self._worker.do(call)
        self._wake_worker()

    def slots(self) -> list[SlotInfo]:
        """The choices that run now, for /slots; never waits for a step."""
        return slots_of(generation for generation, _ in self._live.values())

    def stalled(self) -> float:
        """``activity.Observed.stalled``."""
        return self._worker.stalled()

    def counters(self) -> dict[str, float]:
        """The engine's series for /metrics; never waits for a step."""
        return self._worker.counters()

    def histograms(self) -> dict[str, Histogram]:
        """The engine's distributions for /metrics; never waits for a step."""
        disk = {} if self.disk is None else self.disk.histograms()
        return self._worker.histograms() | disk | self._sizes.histograms()

    def _check_open(self, tenant: Tenant, n_more: int) -> None:
        """Whether a request for ``n_more`` choices may wait. Raises EngineUnavailable or QueueFull."""
        if self._ends_at is not None:
            raise ShuttingDown()
        self._limits.check(tenant, n_more, self._worker.n_waiting_requests, self._n_waiting)

    @property
    def _n_waiting(self) -> int:
        return self._worker.n_waiting + sum(making.n_left for making in self._making.values())

    def _cancel(self, generation: Generation) -> None:
        if (making := self._making.pop(generation, None)) is not None:
            making.stop()
        self._worker.cancel([s.tag for s in generation.sequences if self._live.pop(s.tag, None)])
        self._wake_worker()
        self._limits.end(generation)

    def _wake_worker(self) -> None:
        """Once for all requests that the event loop has at hand: the worker needs the GIL to look at them, and stops
        stepping to wait for it."""
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake_now)

    def _wake_now(self) -> None:
        self._waking = False
        self._worker.wake()

    def _deliver(self) -> None:
        """The pipe's reader: hand out what the steps since the last wake-up produced."""
        os.read(self._wake_read, 4096)
        for tag, text, n_tokens, n_cached, finish, logprobs, stop, ids, n_done in self._outbox.drain():
            if finish == FINISH_REFUSED:
                self._fail([tag], InvalidRequest("the grammar became too complex to be followed"))
                continue
            live = self._live.pop(tag, None) if finish else self._live.get(tag)
            if live is None:
                continue  # cancelled while the step was running
            generation, index = live
            told = index, text, n_tokens, FINISH_REASONS[finish], n_cached
            if logprobs is None:
                generation.push(*told, None, None, stop, ids, n_done)
                continue
            of_prompt, entries = logprobs
            tokens = token_logprobs(entries, generation.top_logprobs, ranked=generation.scores(index))
            generation.push(*told, None if of_prompt else tokens, tokens if of_prompt else None, stop, ids, n_done)

    def _settle_from_worker(self, settled: Settled) -> None:
        self._loop.call_soon_threadsafe(settle, settled)

    def _fail_from_worker(self, tags: list[int], error: LlamafastError) -> None:
        self._loop.call_soon_threadsafe(self._fail, tags, error)

    def _fail(self, tags: list[int], error: LlamafastError) -> None:
        """End the requests these choices belong to; the other choices of the same requests are cancelled."""
        for generation in {self._live[tag][0] for tag in tags if tag in self._live}:
            generation.abort(error)
