"""The loop around llama_decode.

``Stepper.run`` steps without the GIL until Python has something to decide: a sequence finished, somebody called
``interrupt``, or llama_decode refused. One step is fill, decode, sample, detokenise, match stops, publish. The steady
state of decoding takes no Python decision and no lock but the Outbox's.
"""
from libc.stdint cimport int32_t

from .balance cimport RUNNER, born, died
from .batching cimport batching_fill, batching_init, batching_spare
from .choosing cimport Chooser, chooser_next, chooser_score
from .constraint cimport Masker, constraint_ready, masker_wait
from .context cimport Batch, Context, context_decode
from .cost cimport cost_add
from .headers.clock cimport now
from .headers.llama cimport llama_get_logits_ith
from .histograms cimport histograms_init, histograms_read, observe_step, observe_token
from .outbox cimport Outbox, outbox_publish
from .prefiller cimport Prefiller, prefiller_slice
from .prefix cimport BLOCK
from .running cimport running_free, running_init, running_note
from .sequence cimport FINISH_LENGTH, FINISH_NONE, FINISH_STOP, sequence_schedule, sequence_t
from .vocab cimport Vocab


cdef extern from *:
    """
    static inline int flag_load(int *flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
    static inline void flag_store(int *flag, int value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
    """
    int flag_load(int *flag) noexcept nogil
    void flag_store(int *flag, int value) noexcept nogil


PAUSED = RUN_PAUSED
NO_ROOM = RUN_NO_ROOM
FINISHED = RUN_FINISHED
SAVE_DUE = RUN_SAVE_DUE
PREFILLED = RUN_PREFILLED

# How long a step waits for masks that are late: while others could go on, as a share of llama_decode's time, and
# where everybody waits for a mask, in seconds.
cdef double MASK_PATIENCE = 0.1
cdef double MASK_SECONDS = 0.05

# The Prefiller's slice while nothing else is to be computed: so soon a new request or a cancel is heard.
cdef double SLICE_SECONDS = 0.05


cdef class Stepper:
    """Steps over the sequences in ``live``, which a Runner fills. ``interrupt``, ``counts``, ``histograms`` and
    ``since_last_step`` may be called by any thread, ``run`` by the engine thread.
    """

    def __cinit__(self, Context context not None, Vocab vocab not None, Outbox outbox not None, *,
                  int32_t prefill_chunk=0, double target_itl=0, Prefiller prefiller=None):
        self.context = context
        self.outbox = outbox
        self.batch = Batch(context.n_batch)
        self.prefiller = prefiller
        self.masker = Masker()
        self.chooser = Chooser(context, vocab, outbox, self.masker)
        batching_init(&self.batching, context.n_batch, vocab.pieces.n_tokens, prefill_chunk, target_itl)
        if running_init(&self.live, context.memory, context.unified, context.n_cuttable) < 0:
            raise MemoryError
        histograms_init(&self.observed)
        born(RUNNER)
        self.counters.last_step = now()

    def __dealloc__(self):
        if self.counters.last_step:
            died(RUNNER)
        running_free(&self.live)

    def interrupt(self):
        """Make ``run`` return after the current step. Any thread."""
        flag_store(&self.attention, 1)

    def run(self, int max_steps):
        """Step until PAUSED (``interrupt``, ``max_steps`` or nobody has a row to compute), FINISHED (somebody just
        has), SAVE_DUE, PREFILLED, NO_ROOM or a failure (llama_decode's code).
        """
        cdef int status = RUN_PAUSED
        cdef int step = 0
        cdef int32_t n_generating
        with nogil:
            while status == RUN_PAUSED and step < max_steps and not flag_load(&self.attention):
                status = stepper_prefill(self)
                if status != RUN_PAUSED:
                    break
                n_generating = batching_fill(&self.batching, &self.live, &self.batch.batch)
                if self.batch.batch.n_tokens:
                    status = stepper_step(self, n_generating)
                elif anybody_parked(self):
                    masker_wait(self.masker, MASK_SECONDS)
                    status = stepper_publish(self, now())
                elif self.prefiller is not None and self.prefiller.turn.working:
                    self.spare = SLICE_SECONDS
                else:
                    break
                step += 1
        flag_store(&self.attention, 0)
        return status

    def since_last_step(self):
        """Seconds since the last step finished. Any thread."""
        return now() - self.counters.last_step

    def histograms(self):
        """The distributions since the start: (upper bounds, counts between them, sum) by name. Any thread."""
        return histograms_read(&self.observed)

    def counts(self):
        """Everything counted since the start, as a dict. Any thread; never waits for a step."""
        return self.counters | {
            "finished_stop": self.observed.finished[FINISH_STOP],
            "finished_length": self.observed.finished[FINISH_LENGTH],
            "prefix_queries": self.live.queries, "prefix_hits": self.live.hits + self.live.restored,
            "prefix_hits_running": self.live.hits, "prefix_hits_ram": self.live.restored, "forks": self.live.forks,
        }


cdef int stepper_prefill(Stepper self) noexcept nogil:
    """Give the Prefiller what the last step left of its time."""
    cdef int32_t n_rows
    if self.prefiller is None or not self.prefiller.turn.working or self.spare <= 0:
        return RUN_PAUSED
    self.spare -= prefiller_slice(self.prefiller, self.spare)
    self.counters.last_step = now()
    if self.prefiller.turn.working:
        return RUN_PAUSED
    if self.prefiller.code == 0:
        n_rows = self.prefiller.batch.batch.n_tokens
        self.counters.prompt_tokens += n_rows
        stepper_count(self, n_rows, self.prefiller.seconds, self.prefiller.seconds)
        self.counters.prompt_seconds += self.prefiller.seconds
    return RUN_PREFILLED


cdef void stepper_count(Stepper self, int32_t n_rows, double decode_seconds, double step_seconds) noexcept nogil:
    """Count a step, ``decode_seconds`` of which llama_decode took."""
    cdef counters_t *count = &self.counters
    count.steps += 1
    count.rows += n_rows
    count.rows_max = max(count.rows_max, n_rows)
    count.decode_seconds += decode_seconds
    count.step_seconds += step_seconds
    observe_step(&self.observed, step_seconds, n_rows)


cdef int stepper_step(Stepper self, int32_t n_decode) noexcept nogil:
    """Decode the batch, ``n_decode`` of whose rows continue a generation; RUN_PAUSED when there may be another step."""
    cdef int32_t i, n_rows, n_sequences
    cdef bint save_due = False
    cdef int code
    cdef double start, decoded, sampled
    cdef counters_t *count = &self.counters
    cdef sequence_t *s
    n_rows = self.batch.batch.n_tokens
    start = now()
    code = context_decode(self.context, &self.batch.batch)
    if code != 0:
        count.last_step = now()
        return code
    n_sequences = 0
    for i in range(self.live.n):
        s = self.live.states[i]
        if s.n_rows:
            s.n_past += s.n_rows
            sequence_schedule(s, start)
            n_sequences += 1
        save_due = save_due or s.n_past >= s.save_at
    # the first row waits until the device is done
    for i in range(self.live.n):
        if self.live.states[i].output_row >= 0:
            llama_get_logits_ith(self.context.ctx, self.live.states[i].output_row)
            break
    decoded = now()
    await_masks(self, decoded - start)
    code = stepper_publish(self, decoded)
    sampled = count.last_step
    self.spare = batching_spare(&self.batching, sampled - start, n_rows, n_decode, self.live.n - n_sequences)
    cost_add(&self.batching.cost, n_rows, decoded - start)
    stepper_count(self, n_rows, decoded - start, sampled - start)
    count.sequences += n_sequences
    count.prompt_tokens += n_rows - n_decode
    count.prompt_seconds += (decoded - start) * (n_rows - n_decode) / n_rows
    count.generated_seconds += (decoded - start) * n_decode / n_rows
    count.sample_seconds += sampled - decoded
    return RUN_SAVE_DUE if save_due and code == RUN_PAUSED else code


cdef int stepper_publish(Stepper self, double decoded) noexcept nogil:
    """Choose tokens and hand over what became text: RUN_PAUSED, RUN_FINISHED or a failure."""
    cdef int code = stepper_sample(self, decoded)
    if outbox_publish(self.outbox) < 0:
        code = RUN_NO_MEMORY
    self.counters.last_step = now()
    return code


cdef bint anybody_parked(Stepper self) noexcept nogil:
    cdef int32_t i
    for i in range(self.live.n):
        if is_parked(self.live.states[i]):
            return True
    return False


cdef bint is_parked(const sequence_t *s) noexcept nogil:
    """Whether its logits wait for a mask."""
    return s.constraint != NULL and s.constraint.parked and s.finish == FINISH_NONE


cdef void await_masks(Stepper self, double decode_seconds) noexcept nogil:
    """Give the masks of this step's rows a little time, those of slow grammars only where nobody could go on."""
    cdef int32_t i, n_late = 0, n_slow = 0, n_outputs = 0
    cdef sequence_t *s
    for i in range(self.live.n):
        s = self.live.states[i]
        n_outputs += s.output_row >= 0
        if s.output_row >= 0 and s.constraint != NULL and not constraint_ready(s.constraint):
            n_late += 1
            n_slow += s.constraint.lane
    if n_late and n_late == n_outputs:
        masker_wait(self.masker, MASK_SECONDS)
    elif n_late > n_slow:
        masker_wait(self.masker, MASK_PATIENCE * decode_seconds)


cdef int stepper_sample(Stepper self, double decoded) noexcept nogil:
    """Choose a token for every row of logits and stage what became text: RUN_PAUSED, RUN_FINISHED or a failure."""
    cdef int status = RUN_PAUSED, code
    cdef int32_t i
    cdef sequence_t *s
    cdef float *logits
    for i in range(self.live.n):
        s = self.live.states[i]
        if s.n_rows and s.logprobs.n_scored < s.n_prompt and chooser_score(self.chooser, s) < 0:
            return RUN_NO_MEMORY
        if is_parked(s):
            logits = s.constraint.row
        elif s.output_row >= 0:
            logits = llama_get_logits_ith(self.context.ctx, s.output_row)
            if logits == NULL:
                return -1
        else:
            continue
        code = stepper_choose(self, s, logits, decoded)
        if code == RUN_NO_MEMORY:
            return code
        status = max(status, code)
    return status


cdef int stepper_choose(Stepper self, sequence_t *s, float *logits, double decoded) noexcept nogil:
    """A sequence's next token, or several, and what became text, staged: RUN_PAUSED, RUN_FINISHED or RUN_NO_MEMORY."""
    cdef int32_t n_before = s.n_tokens
    if chooser_next(self.chooser, s, logits) < 0:
        return RUN_NO_MEMORY
    if s.n_tokens > n_before:
        self.counters.generated_tokens += s.n_tokens - n_before
        observe_token(&self.observed, s, decoded)
        if s.n_tokens // BLOCK > n_before // BLOCK:
            running_note(&self.live, s)
    return RUN_PAUSED if s.finish == FINISH_NONE else RUN_FINISHED
